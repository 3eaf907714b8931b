"""What /retry asks, and what stays of replies that failed or were interrupted."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from chat_server import HEARD, Server

from serve_app.cli.chat import ChatTerminal
from serve_app.cli.chat_client import Delta, Said
from serve_app.cli.chat_session import ChatSession
from serve_app.errors import InvalidRequest, ParleyError

ONE = [Said("user", "one"), Said("assistant", "reply to [one]")]
TWO = [Said("user", "two"), Said("assistant", "reply to [two]")]
THREE = [Said("user", "three"), Said("assistant", "reply to [three]")]
Process = subprocess.Popen[bytes]
Break = Callable[[ChatSession, Server, str], None]


def hear(session: ChatSession, text: str) -> str:
    return "".join(event.text for event in session.say(text) if isinstance(event, Delta))


def fail(session: ChatSession, server: Server, text: str) -> None:
    server.script = "fail"
    with pytest.raises(ParleyError):
        hear(session, text)
    server.script = "whole"


def refuse(session: ChatSession, server: Server, text: str) -> None:
    server.script = "refuse"
    with pytest.raises(ParleyError):
        hear(session, text)
    server.script = "whole"


def interrupt(session: ChatSession, server: Server, text: str) -> None:
    server.script = "hang"
    events = session.say(text)
    for _ in HEARD:
        next(events)
    events.close()
    server.script = "whole"


broken = pytest.mark.parametrize("breaks", [fail, refuse, interrupt])


def test_retry_takes_the_last_turn_back(session: ChatSession) -> None:
    for text in ("one", "two"):
        hear(session, text)
    before = session.conversation
    assert session.retry() == "two"
    hear(session, "two")
    assert session.conversation != before
    assert session.items() == ONE + TWO


def test_retry_with_nothing_said_is_refused(session: ChatSession) -> None:
    with pytest.raises(InvalidRequest, match="nothing to retry"):
        session.retry()


@broken
def test_retry_asks_the_broken_question_and_leaves_earlier_turns_alone(
    session: ChatSession, server: Server, breaks: Break
) -> None:
    hear(session, "one")
    breaks(session, server, "two")
    assert session.retry() == "two"
    assert session.items() == ONE
    hear(session, "two")
    assert session.items() == ONE + TWO
    assert session.retry() == "two"


@broken
def test_retry_asks_the_first_question_when_its_reply_broke(
    session: ChatSession, server: Server, breaks: Break
) -> None:
    breaks(session, server, "one")
    assert session.retry() == "one"
    hear(session, "one")
    assert session.items() == ONE


@broken
def test_a_retry_that_breaks_can_be_tried_again(
    session: ChatSession, server: Server, breaks: Break
) -> None:
    hear(session, "one")
    hear(session, "two")
    breaks(session, server, session.retry())
    assert session.retry() == "two"
    assert session.items() == ONE


def test_what_was_heard_of_an_interrupted_reply_is_part_of_the_next_question(
    session: ChatSession, server: Server
) -> None:
    hear(session, "one")
    interrupt(session, server, "two")
    partial = [Said("user", "two"), Said("assistant", HEARD)]
    assert session.items() == ONE + partial
    hear(session, "three")
    assert session.items() == [*ONE, *partial, *THREE]
    asked = [(item["role"], item["content"]) for item in server.requests[-1]["input"]]
    assert asked == [("user", "two"), ("assistant", HEARD), ("user", "three")]


def test_a_question_that_was_refused_is_no_part_of_the_next_one(
    session: ChatSession, server: Server
) -> None:
    hear(session, "one")
    refuse(session, server, "two")
    hear(session, "three")
    assert session.items() == ONE + THREE


def test_another_system_prompt_leaves_the_broken_question_to_retry(
    session: ChatSession, server: Server
) -> None:
    hear(session, "one")
    interrupt(session, server, "two")
    session.set_system("be kind")
    assert session.retry() == "two"
    hear(session, "two")
    assert session.items() == [Said("system", "be kind"), *ONE, *TWO]


def test_a_new_conversation_forgets_the_broken_question(
    session: ChatSession, server: Server
) -> None:
    interrupt(session, server, "one")
    session.new()
    assert session.items() == []
    with pytest.raises(InvalidRequest):
        session.retry()


def test_a_script_asks_a_failed_question_again(
    session: ChatSession,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse(session, server, "one")
    monkeypatch.setattr("sys.stdin", io.StringIO("/retry\n"))
    assert ChatTerminal(session, interactive=False).run()
    assert capsys.readouterr().out == "reply to [one]\n"


@contextmanager
def chatting(server: Server, environment: dict[str, str], **streams: int) -> Iterator[Process]:
    """Run `parley chat` as long as the block lasts."""
    with subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli", "chat", "--url", server.url],
        env=environment | {"TERM": "dumb"},
        # Tests that run in the background of a shell would pass on that they ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **streams,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_interrupts_the_reply_and_not_the_chat(
    server: Server, environment: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    server.script = "hang"
    with (
        open(ours, "r+b", buffering=0) as terminal,  # noqa: PTH123 - it has no path
        chatting(server, environment, stdin=theirs, stdout=theirs, stderr=theirs) as process,
    ):
        os.close(theirs)
        read_until(terminal, "› ")
        terminal.write(b"one\r")
        read_until(terminal, "one", HEARD)
        server.script = "whole"
        process.send_signal(signal.SIGINT)
        read_until(terminal, "/retry asks again.", "› ")
        terminal.write(b"/retry\r")
        read_until(terminal, "reply to [one]", "› ")
        terminal.write(b"/quit\r")
        assert process.wait(30) == 0


def test_ctrl_c_ends_a_script(server: Server, environment: dict[str, str]) -> None:
    server.script = "hang"
    pipe = subprocess.PIPE
    with chatting(server, environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        assert process.stdout.read(len(HEARD)) == HEARD.encode()
        process.send_signal(signal.SIGINT)
        left = process.communicate(timeout=30)
        assert (process.returncode, *left) == (130, b"", b"")
    assert [body["input"][-1]["content"] for body in server.requests if "input" in body] == ["one"]


def read_until(terminal: io.FileIO, *wanted: str) -> None:
    """Read what a terminal shows until all of these have come, one behind the other."""
    shown = b""
    position = 0
    for text in wanted:
        while (found := shown.find(text.encode(), position)) < 0:
            shown += terminal.read(4096)
        position = found + len(text.encode())
