"""The terminal chat against a server that speaks the wire format."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import Server

from serve_app.cli.chat import ChatTerminal
from serve_app.cli.chat_client import ChatClient, Delta, Said, Usage
from serve_app.cli.chat_session import ChatSession
from serve_app.errors import InvalidRequest, ParleyError

Parley = Callable[..., subprocess.CompletedProcess[str]]


def hear(session: ChatSession, text: str) -> str:
    return "".join(event.text for event in session.say(text) if isinstance(event, Delta))


def talk(session: ChatSession, text: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return ChatTerminal(session, interactive=False).run()


def test_turns_share_one_stored_conversation(session: ChatSession) -> None:
    assert hear(session, "one") == "reply to [one]"
    first = session.conversation
    assert hear(session, "two") == "reply to [two]"
    assert session.conversation == first
    assert [item.content for item in session.items()] == [
        "one",
        "reply to [one]",
        "two",
        "reply to [two]",
    ]


def test_usage_ends_a_reply(session: ChatSession) -> None:
    *_, last = session.say("one")
    assert last == Usage(input_tokens=5, cached_tokens=2, output_tokens=3, complete=True)


def test_a_system_prompt_replaces_the_one_before(session: ChatSession) -> None:
    session.set_system("be kind")
    hear(session, "one")
    session.set_system("be short")
    hear(session, "two")
    assert session.items()[0] == Said("system", "be short")
    assert [item.role for item in session.items()].count("system") == 1


def test_a_long_conversation_is_carried_over_whole(
    session: ChatSession, tmp_path: Path, server: Server
) -> None:
    lines = [{"role": "user" if n % 2 == 0 else "assistant", "content": str(n)} for n in range(50)]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert session.load(file) == 50
    hear(session, "next")
    created = next(body for body in server.requests if "items" in body)
    assert len(created["items"]) == 20  # the most that a conversation may be created with
    assert [item.content for item in session.items()][:51] == [*map(str, range(50)), "next"]


def test_what_is_saved_can_be_loaded(session: ChatSession, tmp_path: Path) -> None:
    hear(session, "Grüße\n漢字")
    said = session.items()
    assert session.save(tmp_path / "chat.jsonl") == 2
    session.new()
    assert session.items() == []
    session.load(tmp_path / "chat.jsonl")
    assert session.items() == said


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"role": "robot", "content": "x"}', "{}"])
def test_a_file_that_is_no_conversation_is_refused(
    session: ChatSession, tmp_path: Path, line: str
) -> None:
    (tmp_path / "odd").write_text(line + "\n")
    with pytest.raises(InvalidRequest, match=r"odd:1"):
        session.load(tmp_path / "odd")


def test_parameters_are_sent_with_their_types(session: ChatSession, server: Server) -> None:
    for assignment in ("temperature=0.5", "ignore_eos=true", "stop=[a, b]"):
        session.set_parameter(assignment)
    session.set_parameter("temperature=")
    hear(session, "x")
    assert server.requests[-1]["ignore_eos"] is True
    assert server.requests[-1]["stop"] == ["a", "b"]
    assert "temperature" not in server.requests[-1]
    with pytest.raises(InvalidRequest):
        session.set_parameter("temperature")


def test_one_of_several_models_can_be_chosen_and_an_unknown_one_is_named(server: Server) -> None:
    server.models = ["m", "other"]
    with ChatClient(server.url) as client:
        hear(ChatSession(client, model="other"), "x")
        assert server.requests[-1]["model"] == "other"
        hear(ChatSession(client), "x")
        assert server.requests[-1]["model"] == "m"
        with pytest.raises(ParleyError, match="no model third; it serves m, other"):
            ChatSession(client, model="third")


def test_resuming_an_unknown_conversation_says_so(server: Server) -> None:
    with ChatClient(server.url) as client:
        session = ChatSession(client, "conv_missing")
        with pytest.raises(ParleyError, match="No conversation x"):
            session.items()


def test_resume_goes_on_with_the_stored_conversation(
    session: ChatSession, server: Server, parley: Parley
) -> None:
    hear(session, "one")
    stored = session.conversation
    assert stored is not None
    resumed = parley(
        "chat", "--url", server.url, "--resume", stored, said="/history\ntwo\n/history\n"
    )
    assert resumed.returncode == 0, resumed.stderr
    before = ["user: one", "assistant: reply to [one]"]
    after = [*before, "user: two", "assistant: reply to [two]"]
    assert resumed.stdout.splitlines() == [*before, "reply to [two]", *after]
    assert list(server.conversations) == [stored]  # no other was begun
    assert [item.content for item in session.items()][-2:] == ["two", "reply to [two]"]


def test_resume_with_another_system_prompt_leaves_the_stored_conversation_alone(
    session: ChatSession, server: Server, parley: Parley
) -> None:
    hear(session, "one")
    stored = session.conversation
    assert stored is not None
    arguments = ("--url", server.url, "--resume", stored, "--system", "be kind")
    assert parley("chat", *arguments, said="two\n").returncode == 0
    assert [item.content for item in session.items()] == ["one", "reply to [one]"]
    (branch,) = set(server.conversations) - {stored}
    contents = [item["content"][0]["text"] for item in server.conversations[branch]]
    assert contents == ["be kind", "one", "reply to [one]", "two", "reply to [two]"]


@pytest.mark.parametrize("said", ["two\n", "/history\n"])
def test_resume_of_an_unknown_conversation_is_refused_with_a_sentence(
    server: Server, parley: Parley, said: str
) -> None:
    refused = parley("chat", "--url", server.url, "--resume", "conv_missing", said=said)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "No conversation x.\n"


def test_a_person_who_resumes_sees_what_was_said_and_how_to_come_back(
    session: ChatSession, server: Server, environment: dict[str, str]
) -> None:
    hear(session, "one")
    stored = session.conversation
    assert stored is not None
    shown = on_a_terminal(
        ["chat", "--url", server.url, "--resume", stored], environment, types=b"two\r/quit\r"
    )
    assert shown.index("user: one") < shown.index("assistant: reply to [one]")
    assert shown.index("assistant: reply to [one]") < shown.index("reply to [two]")
    assert f"parley chat --resume {stored} goes on from here." in shown


def on_a_terminal(arguments: list[str], environment: dict[str, str], *, types: bytes) -> str:
    """Run `parley` on a terminal of its own, type, and return what the terminal showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli", *arguments],
        env=environment | {"TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        os.write(ours, types)
        shown = bytearray()
        try:
            while select.select([ours], [], [], 30)[0]:
                shown += os.read(ours, 4096)
            process.kill()  # it waits for something that nobody types
        except OSError as error:
            if error.errno != errno.EIO:  # that is how a terminal ends on which nobody is left
                raise
        os.close(ours)
        assert process.wait(30) == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("refuse", "Too busy; come back."),
        ("fail", "The generator died."),
        ("cut", "ended in the middle"),
    ],
)
def test_what_goes_wrong_is_told_and_fails_a_script(
    session: ChatSession,
    server: Server,
    script: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = script
    assert talk(session, "hello\n", monkeypatch) is False
    assert says in capsys.readouterr().err


def test_a_script_gets_replies_and_nothing_else(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(session, "one\n\ntwo \\\nlines\n/quit\nnever said\n", monkeypatch)
    assert capsys.readouterr().out == "reply to [one]\nreply to [two \nlines]\n"


def test_an_unknown_command_is_not_said_to_the_model(
    session: ChatSession,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert talk(session, "/retyr\n", monkeypatch) is False
    assert "no command /retyr" in capsys.readouterr().err
    assert server.requests == []


def test_a_full_disk_is_told_and_the_chat_goes_on(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(session, "one\n/save /dev/full\ntwo\n", monkeypatch) is False
    told = capsys.readouterr()
    assert told.err.startswith("The disk is full")
    assert "reply to [two]" in told.out
