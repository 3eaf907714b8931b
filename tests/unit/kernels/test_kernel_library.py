"""Which instructions the operators use, and whether they are here at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operator_run import LEVELS

from serve_app.kernels import library


@pytest.fixture(autouse=True)
def _widest_again() -> Iterator[None]:
    yield
    library.use_level(None)


def test_the_widest_instructions_are_used_unless_told_otherwise() -> None:
    assert LEVELS[-1] == "plain"
    assert library.use_level("plain") == "plain"
    assert library.use_level(None) == library.level() == LEVELS[0]


def test_instructions_that_nobody_knows_are_refused() -> None:
    unknown: Any = "vnn"
    assert library.use_level(unknown) is None


def test_operators_are_available_where_they_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.available() == (LEVELS[0] != "plain")
    monkeypatch.setattr(library, "_widest", lambda: "plain")
    assert not library.available()
    monkeypatch.setattr(library, "_widest", lambda: "avx2")
    assert library.available()


def test_operators_that_were_not_compiled_are_not_available(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "_PATH", tmp_path / "missing.so")
    assert library.level() is None
    assert not library.available()


def test_asking_for_the_level_leaves_a_chosen_one_in_place() -> None:
    library.use_level("plain")
    assert library.level() == LEVELS[0]
    assert library.use_level("plain") == "plain"
