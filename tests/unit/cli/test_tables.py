"""Tables show every name whole: folded on a narrow terminal, in one line through a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from serve_app.cli import console
from serve_app.models.store import PreparedModel

NAME = "a-name/of-some/length-" + "0123456789" * 12


def printed(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> list[str]:
    stream = io.StringIO()
    # Made as the console of the commands is.
    narrow = Console(
        file=stream,
        force_terminal=terminal,
        color_system=None,
        width=40,
        highlight=False,
        soft_wrap=True,
    )
    monkeypatch.setattr(console, "_stdout", narrow)
    table = Table("name", "id")
    table.add_row(NAME, "7")
    console.show_table(table)
    return stream.getvalue().splitlines()


def test_a_narrow_terminal_folds_a_long_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(monkeypatch, terminal=True)
    assert max(map(len, lines)) <= 40
    cells = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert "".join(cells) == NAME


def test_a_pipe_gets_each_row_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(monkeypatch, terminal=False)
    assert sum(NAME in line for line in lines) == 1
    assert not any(line.endswith(" ") for line in lines)


def test_the_list_of_models_can_be_searched_whatever_the_width(
    parley, tmp_path: Path, bundled_int8: PreparedModel
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "models").symlink_to(bundled_int8.path.parent)
    listed = parley("model", "list", COLUMNS="40").stdout.splitlines()
    (row,) = [line for line in listed if bundled_int8.path.name in line]
    assert bundled_int8.manifest.name in row
    assert "int8" in row


def test_the_list_of_keys_shows_a_long_name_whole(parley) -> None:
    assert parley("key", "create", NAME).returncode == 0
    assert NAME in parley("key", "list", COLUMNS="40").stdout
