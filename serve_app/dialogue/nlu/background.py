"""Sentences that are nobody's intent: what people say between, small talk, other matters."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

__all__ = ["background_without"]

_FILE = Path(__file__).parent / "background.txt"


def background_without(sentences: Iterable[str]) -> list[str]:
    """Return the background but for what a persona has as an example of its own."""
    own = {_plain(sentence) for sentence in sentences}
    return [sentence for sentence in _background() if _plain(sentence) not in own]


@cache
def _background() -> tuple[str, ...]:
    return tuple(_FILE.read_text(encoding="utf-8").splitlines())


def _plain(sentence: str) -> str:
    return " ".join(sentence.casefold().split()).strip(" .!?")
