"""One request's lines out of the files in all pods, by a real shell, grep and tail."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_api_server import ApiServer
from typer.testing import Result

from serve_app.errors import InvalidRequest, OperationError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.request_logs import LogLine, follow_request, request_lines

Ops = Callable[..., Result]

REQUEST = "resp_4f1c"


def file(server: ApiServer, pod: str, deployment: str) -> Path:
    folder = server.disks[f"parley-x1-{pod}"] / "session_latest" / "logs" / "serve"
    return folder / f"replica_parley_{deployment}_x.log"


def record(second: int, deployment: str, message: str) -> str:
    """A line as Serve writes it with `encoding: JSON`."""
    said = {
        "asctime": "2026-11-26 12:00:00,000",
        "levelname": "WARNING",
        "message": message,
        "deployment": deployment,
        "timestamp_ns": 1_795_694_400_000_000_000 + second * 1_000_000_000,
    }
    return json.dumps(said) + "\n"


@pytest.fixture
def written(server: ApiServer) -> None:
    others = record(5, "Ingress", "of resp_other")
    file(server, "cpu-a", "Ingress").write_text(record(2, "Ingress", f"{REQUEST} ü left") + others)
    rotated = file(server, "gpu-b", "Generator").with_suffix(".log.1")
    rotated.write_text(record(1, "Generator", f"{REQUEST} admitted"))
    file(server, "cpu-b", "Dialogue").write_text(f"plain {REQUEST} text\n")


@pytest.mark.usefixtures("written")
def test_lines_of_all_deployments_come_in_order_of_time(api: ClusterApi) -> None:
    lines, complaints = request_lines(api, "parley", REQUEST)
    assert complaints == []
    assert [(line.pod, line.deployment, line.message) for line in lines] == [
        ("parley-x1-cpu-b", "", f"plain {REQUEST} text"),
        ("parley-x1-gpu-b", "Generator", f"{REQUEST} admitted"),
        ("parley-x1-cpu-a", "Ingress", f"{REQUEST} ü left"),
    ]
    assert lines[1].time == "2026-11-26T12:00:01.000Z"


@pytest.mark.usefixtures("written")
def test_lines_are_printed_with_their_place_or_as_json(ops: Ops) -> None:
    shown = ops("logs", REQUEST)
    assert shown.exit_code == 0
    assert "2026-11-26T12:00:02.000Z  parley-x1-cpu-a/Ingress  WARNING" in shown.stdout
    printed = [json.loads(line) for line in ops("logs", REQUEST, "--json").stdout.splitlines()]
    assert len(printed) == 3


def test_a_request_that_no_log_names_is_said_so(ops: Ops) -> None:
    assert "No log names resp_none" in ops("logs", "resp_none").stdout


@pytest.mark.usefixtures("written")
def test_new_lines_are_followed_in_every_pod(api: ClusterApi, server: ApiServer) -> None:
    found = follow_request(api, "parley", REQUEST, seconds=20)
    seen = [next(found) for _ in range(2)]
    assert {one.pod for one in seen} == {"parley-x1-cpu-a", "parley-x1-cpu-b"}

    def more() -> None:
        with file(server, "cpu-b", "Dialogue").open("a") as log:
            log.write(record(7, "Dialogue", "of resp_other"))
            log.write(record(8, "Dialogue", f"{REQUEST} stored"))

    threading.Thread(target=more).start()
    line = next(found)
    assert isinstance(line, LogLine)
    assert (line.deployment, line.message) == ("Dialogue", f"{REQUEST} stored")
    found.close()


def test_following_ends_by_itself(api: ClusterApi) -> None:
    assert list(follow_request(api, "parley", REQUEST, seconds=0.2)) == []


@pytest.mark.usefixtures("written")
def test_an_id_is_never_a_pattern_or_a_command(api: ClusterApi, tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    for odd in ("resp_.*", f"$(touch {bait})", f"`touch {bait}`", f"-e; touch {bait}", "'"):
        lines, _ = request_lines(api, "parley", odd)
        assert lines == []
    assert not bait.exists()


@pytest.mark.parametrize("odd", ["", " ", "a\nb", "x" * 300])
def test_what_can_be_no_id_is_refused(odd: str, api: ClusterApi) -> None:
    with pytest.raises(InvalidRequest, match="resp_"):
        request_lines(api, "parley", odd)


def test_who_may_not_run_commands_in_pods_is_told_the_verb(ops: Ops, server: ApiServer) -> None:
    for token, rules in server.users.items():
        server.users[token] = [rule for rule in rules if "pods/exec" not in rule["resources"]]
    failed = ops("logs", REQUEST)
    assert isinstance(failed.exception, OperationError)
    assert "lacks the verb `create` on `pods/exec`" in failed.exception.message
