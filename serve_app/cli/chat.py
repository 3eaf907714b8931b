"""`parley chat`: an interactive conversation in the terminal, or a script's through a pipe."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.chat_client import ChatClient, Delta, Usage
from serve_app.cli.chat_session import ChatSession
from serve_app.cli.console import complain, say, sentence_of, write
from serve_app.cli.running import running_url
from serve_app.errors import InvalidRequest, ParleyError
from serve_app.settings import parley_home

__all__ = ["ChatTerminal", "chat"]

_PROMPT = "› "
_BETWEEN_ASSIGNMENTS = re.compile(r"\s+(?=\w+=)")
_INTERRUPTED_EXIT = 130  # a shell's convention for "ended by Ctrl-C"
_HELP = """\
/new                begin a new conversation
/system TEXT        set the system prompt; without TEXT remove it
/retry              take the last turn back and ask again; also one that failed or was interrupted
/params [A=B …]     set fields of the requests, such as temperature=0.2; without any show them
/history            print what was said so far
/save FILE          write the conversation as JSON Lines
/load FILE          begin a new conversation with a saved one
/help               print this
/quit               leave (also Ctrl-D)
Ctrl-C interrupts a reply. What it had said by then stays in the conversation, unless /retry takes
it back; a question of which nothing was answered stays only if /retry asks it again.
A line that ends with \\ goes on in the next one."""


def chat(
    *,
    url: Annotated[
        str | None, typer.Option(help="Server; the one that `parley up` started if none is named.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="PARLEY_API_KEY", help="Better given in the environment.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Id of a stored conversation to go on with.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the model, where several are served.")
    ] = None,
) -> None:
    """Talk to the model. Lines from a pipe are said one after the other."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # rather than end over one odd character
    with ChatClient(url or running_url(), api_key) as client:
        session = ChatSession(client, resume, model)
        if system is not None:
            session.set_system(system)
        terminal = ChatTerminal(session, interactive=sys.stdin.isatty())
        try:
            answered = terminal.run()
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED_EXIT) from None
        if not answered:
            raise typer.Exit(1)


class ChatTerminal:
    """Reads lines, runs slash commands, prints replies as they come.

    Args:
        session: the conversation.
        interactive: a person types; otherwise only replies are printed.
    """

    def __init__(self, session: ChatSession, *, interactive: bool) -> None:
        self._session = session
        self._interactive = interactive
        self._failed = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: say(_HELP),
            "/new": self._new,
            "/system": self._system,
            "/retry": self._retry,
            "/params": self._params,
            "/history": self._history,
            "/save": self._save,
            "/load": self._load,
        }

    def run(self) -> bool:
        """Talk until the input ends; return whether everything was answered.

        Raises:
            KeyboardInterrupt: nobody is there who could go on after Ctrl-C.
        """
        if self._interactive:
            _remember_lines(parley_home() / "chat_history")
            say(f"{self._session.model}. /help shows the commands, Ctrl-D leaves.", "dim")
            if self._session.conversation:
                self._history("")
        while True:
            try:
                line = self._read()
            except EOFError:
                break
            except KeyboardInterrupt:
                self._interrupted("Ctrl-D or /quit leaves.")
                continue
            if line.split(maxsplit=1)[:1] in (["/quit"], ["/exit"]):
                break
            try:
                if line:
                    self._run_line(line)
            except KeyboardInterrupt:
                self._interrupted("Interrupted.")
        if self._interactive and self._session.conversation:
            say(f"parley chat --resume {self._session.conversation} goes on from here.", "dim")
        return not self._failed

    def _interrupted(self, sentence: str) -> None:
        if not self._interactive:
            raise
        say(f"\n{sentence}", "dim")

    def _read(self) -> str:
        line = input(_PROMPT if self._interactive else "")
        while line.endswith("\\"):
            line = line[:-1] + "\n"
            with suppress(EOFError):  # the next read comes to it again
                line += input("  " if self._interactive else "")
        return line.strip()

    def _run_line(self, line: str) -> None:
        name, *more = line.split(maxsplit=1)
        rest = "".join(more)
        try:
            if command := self._commands.get(name):
                command(rest)
            elif name.startswith("/") and "/" not in name[1:]:
                complain(f"There is no command {name}; /help shows them.")
                self._failed = True
            else:
                self._reply(line)
        except ParleyError as error:
            complain(error.message)
            self._failed = True
        except BrokenPipeError:
            raise  # nobody reads any more
        except OSError as error:
            complain(sentence_of(error))
            self._failed = True

    def _reply(self, text: str) -> None:
        began = time.monotonic()
        first: float | None = None
        try:
            with closing(self._session.say(text)) as events:
                for event in events:
                    match event:
                        case Delta():
                            first = first or time.monotonic()
                            write(event.text)
                        case Usage():
                            self._tell(event, began, first or time.monotonic())
        except KeyboardInterrupt:
            self._interrupted("Interrupted; /retry asks again.")
        except ParleyError as error:
            if first:
                sys.stdout.write("\n")
            complain(error.message)
            self._failed = True
            self._hint("/retry asks again.")

    def _tell(self, usage: Usage, began: float, first: float) -> None:
        sys.stdout.write("\n")
        if not self._interactive:
            return
        seconds = max(time.monotonic() - first, 1e-6)
        rate = (
            f", {(usage.output_tokens - 1) / seconds:.1f} tokens/s"
            if usage.output_tokens > 1
            else ""
        )
        cut = "" if usage.complete else "; cut by its token limit"
        say(
            f"{usage.output_tokens} tokens, the first after {first - began:.2f} s{rate}; prompt "
            f"{usage.input_tokens} tokens, {usage.cached_tokens} cached{cut}",
            "dim",
        )

    def _new(self, _rest: str) -> None:
        self._session.new()
        self._hint("A new conversation.")

    def _system(self, rest: str) -> None:
        self._session.set_system(rest)
        self._hint("System prompt set." if rest else "No system prompt.")

    def _retry(self, _rest: str) -> None:
        text = self._session.retry()
        self._hint(text)
        self._reply(text)

    def _params(self, rest: str) -> None:
        for assignment in _BETWEEN_ASSIGNMENTS.split(rest) if rest else ():
            self._session.set_parameter(assignment)
        shown = " ".join(f"{name}={value}" for name, value in self._session.parameters.items())
        say(shown or "Every parameter has its default.", "dim")

    def _history(self, _rest: str) -> None:
        for item in self._session.items():
            say(f"{item.role}: {item.content}", "dim" if item.role == "system" else "")

    def _save(self, rest: str) -> None:
        count = self._session.save(self._file(rest))
        self._hint(f"{count} messages are in {rest}.")

    def _load(self, rest: str) -> None:
        count = self._session.load(self._file(rest))
        self._hint(f"A new conversation with {count} messages.")

    def _file(self, rest: str) -> Path:
        if not rest or "\0" in rest:
            msg = "Name a file."
            raise InvalidRequest(msg)
        return Path(os.path.expanduser(rest))  # noqa: PTH111 - Path's own fails for unknown users

    def _hint(self, text: str) -> None:
        if self._interactive:
            say(text, "dim")


def _remember_lines(file: Path) -> None:
    """Edit lines with the arrow keys and find earlier ones again, if the file can be kept."""
    import atexit
    import readline

    def keep() -> None:
        with suppress(OSError):  # it was told at the beginning, or the disk is full by now
            readline.write_history_file(file)

    readline.set_history_length(1000)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if file.exists():
            readline.read_history_file(file)
        else:
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        say(f"What you type won't be remembered. {sentence_of(error)}", "dim")
    else:
        atexit.register(keep)
