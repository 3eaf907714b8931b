"""A chat with odd input, odd replies and odd servers: a sentence each time, and the chat goes on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Server

from serve_app.cli import console
from serve_app.cli.chat_client import ChatClient, Delta, Said
from serve_app.cli.chat_session import ChatSession
from serve_app.errors import ConfigError, InvalidRequest, ParleyError

Parley = Callable[..., subprocess.CompletedProcess[str]]
SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
HALF_A_PAIR = "\ud800"


def hear(session: ChatSession, text: str) -> str:
    return "".join(event.text for event in session.say(text) if isinstance(event, Delta))


def event(body: object, end: bytes = b"\n") -> bytes:
    data = json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
    return b"data: " + data + end * 2


def delta(text: object) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text}


DONE = {"type": "response.completed", "response": {"status": "completed"}}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_reply_may_hold_every_separator_of_lines(
    session: ChatSession, server: Server, end: bytes
) -> None:
    server.stream = event(delta(SEPARATORS), end) + event(DONE, end)
    assert hear(session, "one") == SEPARATORS


def test_a_very_long_event_is_one_delta(session: ChatSession, server: Server) -> None:
    server.stream = event(delta("long" * 500_000)) + event(DONE)
    assert len(hear(session, "one")) == 2_000_000


def test_a_reply_may_be_empty(parley: Parley, server: Server) -> None:
    server.stream = event(DONE)
    told = parley("chat", "--url", server.url, said="one\n")
    assert (told.returncode, told.stdout, told.stderr) == (0, "\n", "")


@pytest.mark.parametrize(
    "data",
    [
        *(b"data: " + data + b"\n\n" for data in (b"{", b"[]", b"{}", b"\xff", b"[" * 9999)),
        event({"type": "response.failed"}),
        event({"type": "error", "error": "text"}),
    ],
)
def test_an_event_that_is_none_is_told(session: ChatSession, server: Server, data: bytes) -> None:
    server.stream = data
    with pytest.raises(ParleyError, match="is not OpenAI's API"):
        hear(session, "one")


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((200, {}, b"<html>"), "is not OpenAI's API; name Parley's address with --url."),
        ((200, {}, b"[1]"), "is not OpenAI's API; name Parley's address with --url."),
        ((200, {}, b'{"data": 1}'), "is not OpenAI's API; name Parley's address with --url."),
        ((200, {}, b'{"data": []}'), "serves no model."),
        ((302, {"location": "/"}, b""), "is not OpenAI's API; name Parley's address with --url."),
        ((401, {}, b'{"error": {"message": "Send a key."}}'), "Send a key."),
        ((502, {}, b"<html>"), "answered 502."),
        ((200, {"content-length": "9"}, b"{"), "(received 1 bytes, expected 9))."),
        (
            (429, {"retry-after": "7"}, b'{"error": {"message": "Too busy."}}'),
            "Too busy. The server asks for 7 s before another try.",
        ),
    ],
)
def test_what_a_server_refuses_with_is_a_sentence(
    parley: Parley, server: Server, refusal: tuple[int, dict[str, str], bytes], says: str
) -> None:
    server.refusal = refusal
    told = parley("chat", "--url", server.url, said="one\n")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.endswith(f"{says}\n")
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://a b", "http://a:99999", "x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--url takes one like"):
        ChatClient(url)


def test_the_address_may_be_the_one_that_other_clients_want(server: Server) -> None:
    with ChatClient(f"{server.url}/v1/") as client:
        assert client.model() == "m"


@pytest.mark.parametrize("key", ["pk-ü", "pk a", "pk\n"])
def test_a_key_that_no_header_can_hold_is_refused(server: Server, key: str) -> None:
    with pytest.raises(ConfigError, match="parley key create"):
        ChatClient(server.url, key)


def test_the_key_of_the_environment_is_sent(parley: Parley, server: Server) -> None:
    assert parley("chat", "--url", server.url, PARLEY_API_KEY="pk-1").returncode == 0
    assert server.authorization == "Bearer pk-1"


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_no_proxy_stands_between_the_chat_and_this_machine(
    parley: Parley, server: Server, proxy: str
) -> None:
    told = parley("chat", "--url", server.url, said="one\n", HTTP_PROXY=proxy, ALL_PROXY=proxy)
    assert (told.returncode, told.stdout) == (0, "reply to [one]\n"), told.stderr


def test_a_server_elsewhere_is_asked_through_the_proxy(parley: Parley, server: Server) -> None:
    elsewhere = ("chat", "--url", "http://parley.invalid")
    told = parley(*elsewhere, HTTP_PROXY=server.url, NO_PROXY="")
    assert told.returncode == 1
    assert "Nothing answers" not in told.stderr  # the proxy has
    unusable = parley(*elsewhere, ALL_PROXY="nonsense://127.0.0.1:9", NO_PROXY="")
    assert unusable.returncode == 1
    assert "The environment's proxy can't be used" in unusable.stderr


@pytest.mark.parametrize(
    "assignment",
    [
        *("stop=[", "stop=2020-01-01", "stop=2020-13-01", "stop=&a [*a]", "stop=" + "[" * 9999),
        *("top_p=.nan", "stop=!!python/name:os.system", "stream=false", "model=other"),
        *("temperature", "=1"),
    ],
)
def test_a_parameter_that_is_none_is_refused(session: ChatSession, assignment: str) -> None:
    with pytest.raises(InvalidRequest):
        session.set_parameter(assignment)
    assert session.parameters == {}


def test_parameters_may_have_spaces_in_them(parley: Parley, server: Server) -> None:
    line = '/params stop=[a, "b c"] temperature=1e-1  seed=7\none\n'
    assert parley("chat", "--url", server.url, said=line).returncode == 0
    sent = server.requests[-1]
    assert (sent["stop"], sent["temperature"], sent["seed"]) == (["a", "b c"], 0.1, 7)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/params stop=[", "`[` is no value for stop"),
        ("/load odd", "odd:2 is no message"),
        ("/load /", "Is a directory: /."),
        ("/load ~nobody-of-this-name/x", "No such file or directory: ~nobody-of-this-name/x."),
        ("/load", "Name a file."),
        ("/save a\0b", "Name a file."),
        ("/save /proc/none/x", "No such file or directory: /proc/none/x."),
        ("/save /dev/full", "The disk is full"),
        ("/", "There is no command /;"),
    ],
)
def test_a_command_that_fails_is_told_and_the_chat_goes_on(
    parley: Parley, server: Server, tmp_path: Path, line: str, says: str
) -> None:
    (tmp_path / "odd").write_bytes(b'{"role": "user", "content": "x"}\n\xff\xfe\0\n')
    told = parley("chat", "--url", server.url, said=f"one\n{line}\ntwo\n")
    assert told.returncode == 1
    assert told.stdout == "reply to [one]\nreply to [two]\n"
    assert told.stderr.startswith(says)


def test_what_is_saved_can_be_loaded_whatever_it_is(
    session: ChatSession, server: Server, tmp_path: Path
) -> None:
    said = [Said("user", SEPARATORS), Said("assistant", HALF_A_PAIR)]
    lines = "\n".join(json.dumps({"role": one.role, "content": one.content}) for one in said)
    (tmp_path / "one").write_text(f"{lines}\n\n")
    assert session.load(tmp_path / "one") == 2
    assert session.save(tmp_path / "two") == 2
    session.load(tmp_path / "two")
    assert session.items() == said
    hear(session, "next")  # it can be sent, too
    assert server.requests[0]["items"][1]["content"] == HALF_A_PAIR


def test_bytes_that_are_no_text_are_said_as_far_as_they_can_be(
    parley: Parley, server: Server
) -> None:
    server.stream = b'data: {"type":"response.output_text.delta","delta":"\\ud800!"}\n\n' + event(
        DONE
    )
    told = parley("chat", "--url", server.url, said="\udcff one\n")
    assert (told.returncode, told.stdout, told.stderr) == (0, "?!\n", "")
    assert server.requests[-1]["input"][-1]["content"] == "\ufffd one"


def test_a_line_that_should_go_on_ends_with_the_input(parley: Parley, server: Server) -> None:
    assert parley("chat", "--url", server.url, said="one\\").stdout == "reply to [one]\n"


def test_a_line_may_be_very_long(parley: Parley, server: Server) -> None:
    server.stream = event(DONE)
    said = "long" * 500_000
    assert parley("chat", "--url", server.url, said=f"{said}\n").returncode == 0
    assert server.requests[-1]["input"][-1]["content"] == said


def test_quit_needs_no_more_words(parley: Parley, server: Server) -> None:
    told = parley("chat", "--url", server.url, said="/quit now\nnever said\n")
    assert (told.returncode, told.stdout) == (0, "")


def test_a_terminal_is_shown_controls_and_does_not_obey_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2Ja\rb\x07\x9b1m\tc\n"
    console.write(hostile)
    assert capsys.readouterr().out == hostile
    monkeypatch.setattr(console._stdout, "_force_terminal", True)
    console.write(hostile)
    assert capsys.readouterr().out == "␛[2Jab␇\ufffd1m\tc\n"


def test_a_home_that_cannot_be_written_costs_only_the_history(
    session: ChatSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve_app.cli.chat import _remember_lines

    (tmp_path / "file").touch()
    _remember_lines(tmp_path / "file" / "chat_history")
    assert capsys.readouterr().out.startswith("What you type won't be remembered.")
