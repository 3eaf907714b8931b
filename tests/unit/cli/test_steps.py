"""Steps show how far they are, in numbers: on a terminal, and as lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from serve_app.cli import console
from serve_app.cli.console import ConsoleSteps


def shown_by(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, fails: bool = False) -> str:
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=terminal, color_system=None, width=120)
    monkeypatch.setattr(console, "_stdout", screen)
    try:
        with ConsoleSteps() as steps:
            steps.begin("Preparing [this]")
            steps.update("downloading", 3_000_000, 10_000_000)
            steps.update("writing", 2, 7)
            steps.update("waiting")
            steps.begin("Starting")
            steps.update("replicas", 1, 4)
            if fails:
                raise TimeoutError
    except TimeoutError:
        pass
    return stream.getvalue()


def test_a_pipe_gets_a_line_for_each_stage_with_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = shown_by(monkeypatch, terminal=False).splitlines()
    assert lines[:4] == [
        "Preparing [this] …",
        "  downloading 3.0/10.0 MB",
        "  writing 2/7",
        "  waiting",
    ]
    assert lines[4].startswith("  done after ")
    assert lines[5:7] == ["Starting …", "  replicas 1/4"]
    assert lines[7].startswith("  done after ")


def test_a_terminal_shows_the_numbers_and_keeps_a_line_for_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = shown_by(monkeypatch, terminal=True)
    assert "Starting: replicas" in shown
    assert "1/4" in shown
    assert "✓ Preparing [this]" in shown
    assert "✓ Starting" in shown


@pytest.mark.parametrize(("terminal", "mark"), [(True, "✗ Starting"), (False, "  failed after ")])
def test_a_step_that_fails_is_not_called_done(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool, mark: str
) -> None:
    shown = shown_by(monkeypatch, terminal=terminal, fails=True)
    assert mark in shown
    assert "✓ Starting" not in shown


def test_steps_aside_leave_stdout_to_other_programs(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleSteps(aside=True) as steps:
        steps.begin("Verifying")
        steps.update("hashing", 1, 2)
        steps.note("Slow.")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("Verifying …\n  hashing 1/2\nSlow.\n")
