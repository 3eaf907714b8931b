"""`parley explain`: the waterfall of a request in a terminal, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from chat_server import Server

from serve_app.api.account import account_object, read_account
from serve_app.cli.waterfall import picture, waterfall
from serve_app.telemetry.account import Account, Stage

ACCOUNT = Account(
    "chatcmpl-1",
    "x-1",
    "chat.completions",
    1_700_000_000.0,
    0.1,
    (
        Stage("plan", 0.01, 0.01),
        Stage("prefill", 0, 0.02),
        Stage("decode", 0, 0.05),
        Stage("write", 0.0001),
    ),
    first_token_s=0.04,
    prompt_tokens=20,
    cached_tokens=16,
    completion_tokens=8,
)
FOUND = account_object(ACCOUNT)


def answer(server: Server, body: dict[str, Any], status: int = 200) -> None:
    server.refusal = (status, {"content-type": "application/json"}, json.dumps(body).encode())


def test_an_account_reads_as_it_was_written() -> None:
    account = read_account(FOUND)
    assert account_object(account) == FOUND
    assert account.unaccounted_s == pytest.approx(ACCOUNT.unaccounted_s)


def test_each_bar_begins_where_the_one_before_it_ends() -> None:
    bars = [str(cell) for cell in waterfall(ACCOUNT).columns[-1].cells]
    # 48 cells for 100 ms.
    assert bars[:4] == [
        "░" * 5 + "█" * 5,
        " " * 10 + "█" * 9,
        " " * 19 + "█" * 24,
        " " * 43 + "▏",
    ]


def test_explain_prints_every_stage_and_what_is_left(parley: Any, server: Server) -> None:
    answer(server, FOUND)
    shown = parley("explain", "chatcmpl-1", "--url", server.url)
    assert shown.returncode == 0, shown.stderr
    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.strip()}
    assert rows["plan"][1:4] == ["10.0", "10.0", "20.0%"]
    assert rows["prefill"][1:3] == ["20.0", "20.0%"]
    assert rows["unaccounted"][1:] == ["9.9", "9.9%"]
    assert rows["all"][1:] == ["10.1", "80.0"]
    assert "first token after 40.0 ms; 20 prompt tokens, 16 of them cached" in shown.stdout


def test_json_is_what_the_server_says(parley: Any, server: Server) -> None:
    answer(server, FOUND)
    shown = parley("explain", "chatcmpl-1", "--json", "--url", server.url)
    assert json.loads(shown.stdout) == FOUND


def test_the_picture_is_svg_with_an_area_for_every_part_and_fetches_nothing(
    parley: Any, server: Server, tmp_path: Path
) -> None:
    answer(server, FOUND)
    file = tmp_path / "reply.svg"
    shown = parley("explain", "chatcmpl-1", "--picture", str(file), "--url", server.url)
    assert shown.returncode == 0, shown.stderr
    root = ElementTree.fromstring(file.read_text(encoding="utf-8"))  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    assert all(name in text for name in ("plan", "prefill", "decode", "write", "unaccounted"))
    assert "http" not in file.read_text().replace("http://www.w3.org/2000/svg", "")


def test_a_longer_stage_has_a_longer_area() -> None:
    def areas(account: Account) -> list[float]:
        root = ElementTree.fromstring(picture(account))  # noqa: S314 - our own
        rects = root.iter("{http://www.w3.org/2000/svg}rect")
        return sorted(
            float(one.attrib["width"]) for one in rects if "crispEdges" in str(one.attrib)
        )

    short, long = (
        Account("r", "", "x", 0, 1, (Stage("decode", 0, seconds),)) for seconds in (0.25, 0.75)
    )
    assert areas(long)[-1] == pytest.approx(3 * areas(short)[-1], rel=0.01)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            404,
            {"error": {"message": "There is no account of it.", "code": "account_not_found"}},
            "There is no account of it.\n",
        ),
        (200, {"stages": "many"}, "not OpenAI's API"),
    ],
)
def test_what_is_no_account_is_a_sentence(
    parley: Any, server: Server, status: int, body: dict[str, Any], said: str
) -> None:
    answer(server, body, status)
    shown = parley("explain", "chatcmpl-1", "--url", server.url)
    assert shown.returncode == 1
    assert said in shown.stderr
    assert shown.stdout == ""


def test_an_id_is_a_part_of_the_address_whatever_is_in_it(parley: Any, server: Server) -> None:
    answer(server, FOUND)
    assert parley("explain", "../../x?y", "--url", server.url).returncode == 0
