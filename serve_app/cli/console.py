"""What the commands show: steps with real numbers, sentences, tables, and complaints."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from serve_app.settings import parley_home

__all__ = ["ConsoleSteps", "complain", "say", "sentence_of", "show_table", "write"]

_MEGABYTE = 1_000_000
_PLAIN_EVERY_S = 5.0
_PIPE_WIDTH = 100_000  # whoever reads a pipe wants each row in one line

# What a model says must not move the cursor or rename the window: controls are shown, not obeyed.
_CONTROLS = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x0D: None,
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}

_stdout = Console(highlight=False, soft_wrap=True)
_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """Print a line as it is, brackets included."""
    _print(_stdout, text, style)


def write(text: str) -> None:
    """Print a piece of what a model says at once; a pipe gets it unchanged."""
    _stdout.file.write(_shown(_stdout, text))
    _stdout.file.flush()


def show_table(table: Table) -> None:
    """Print a table; what is too long for the terminal goes on in the next line, nothing is cut."""
    for column in table.columns:
        column.overflow = "fold"
    if not _stdout.is_terminal:
        unbounded = _stdout.options.update(max_width=_PIPE_WIDTH)
        table.width = _stdout.measure(table, options=unbounded).maximum
    _stdout.print(table, soft_wrap=False, crop=False)


def complain(sentence: str) -> None:
    """Print what went wrong to stderr, in red where there are colours."""
    _print(_stderr, sentence, "red")


def sentence_of(error: OSError) -> str:
    """Say what the system has refused, and of which file."""
    file = error.filename
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        full = f"The disk is full: {file or 'a file'} could not be written."
        return f"{full} Free some space and try again."
    reason = error.strerror or str(error)
    if not isinstance(file, str):
        return f"{reason}."
    home = parley_home()
    if Path(file).is_relative_to(home) and not (home.is_dir() and os.access(home, os.W_OK)):
        return f"{reason}: {file}. Set PARLEY_HOME to a folder that can be written."
    return f"{reason}: {file}."


class ConsoleSteps:
    """Shows the steps of a command: moving on a terminal, as plain lines elsewhere.

    Use it as a context manager; leaving it ends the last step.

    Args:
        aside: on stderr, for a command whose stdout is for other programs.
    """

    def __init__(self, *, aside: bool = False) -> None:
        self._console = _stderr if aside else _stdout
        self._title = ""
        self._began = 0.0
        self._stage = ""
        self._shown = 0.0
        self._task = None
        self._progress = (
            Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> ConsoleSteps:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(well=kind is None)
        if self._progress:
            self._progress.stop()

    def begin(self, title: str) -> None:
        """Start a step; the one before it has ended well."""
        self.end(well=True)
        self._title, self._began, self._stage = title, time.monotonic(), ""
        if self._progress:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(escape(title), total=None, numbers="")
        else:
            _print(self._console, f"{title} …")

    def update(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say how far the step is: `done` of `total`, or 0 of 0 where there is nothing to count."""
        numbers = _numbers(done, total)
        if self._progress:
            for task in self._progress.task_ids:
                self._progress.update(
                    task,
                    description=escape(f"{self._title}: {stage}"),
                    completed=done,
                    total=total or None,
                    numbers=numbers,
                )
            return
        now = time.monotonic()
        if stage != self._stage or now - self._shown >= _PLAIN_EVERY_S:
            _print(self._console, f"  {stage} {numbers}".rstrip())
            self._stage, self._shown = stage, now

    def note(self, text: str) -> None:
        """Say something that stays on the screen."""
        # Output that goes to a file on a full disk is no reason to end what the note is about.
        with suppress(OSError):
            _print(self._console, text)

    def end(self, *, well: bool = True) -> None:
        """End the step before another begins; where none is open, nothing happens."""
        if not self._title:
            return
        seconds = f"{time.monotonic() - self._began:.1f} s"
        if self._progress:
            mark, style = ("✓", "green") if well else ("✗", "red")
            self._console.print(
                Text.assemble((f"{mark} ", style), self._title, (f"  {seconds}", "dim"))
            )
        else:
            _print(self._console, f"  {'done' if well else 'failed'} after {seconds}")
        self._title = ""


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(_shown(console, text), style=style))


def _shown(console: Console, text: str) -> str:
    return text.translate(_CONTROLS) if console.is_terminal else text


def _numbers(done: int, total: int) -> str:
    if not total:
        return ""
    if total >= _MEGABYTE:
        return f"{done / _MEGABYTE:.1f}/{total / _MEGABYTE:.1f} MB"
    return f"{done}/{total}"
