"""Lexicons: words and phrases with a value, one a line, tab-separated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_app.dialogue.nlu.understanding import Span

__all__ = ["Lexicon", "LexiconHit", "lexicon_named"]

_FOLDER = Path(__file__).parent / "lexicons"
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_HAN = re.compile(r"[\u3400-\u9fff]")
_MOST_WORDS = 4
_NEGATION_REACH = 3

_NEGATIONS = frozenset(
    (
        *("not", "no", "never", "nobody", "nothing", "hardly", "without", "cannot"),
        *(
            "isn't",
            "aren't",
            "wasn't",
            "weren't",
            "don't",
            "doesn't",
            "didn't",
            "can't",
            "couldn't",
        ),
        *("won't", "wouldn't", "shouldn't", "haven't", "hasn't", "hadn't", "ain't"),
        *("nicht", "kein", "keine", "keinen", "keinem", "keiner", "nie", "niemals", "nichts"),
        *("ohne", "kaum"),
    )
)
_HAN_NEGATIONS = ("不", "没", "没有", "别", "无")


@dataclass(frozen=True, slots=True)
class LexiconHit:
    """An entry found in a text.

    Attributes:
        values: what the lexicon says of it.
        span: where it stands.
        negated: whether a negation stands shortly before it.
    """

    values: tuple[str, ...]
    span: Span
    negated: bool


class Lexicon:
    """Words and phrases, in any of the languages that the file has.

    Args:
        entries: values by word or phrase, in lower case.
    """

    def __init__(self, entries: dict[str, tuple[str, ...]]) -> None:
        self._words = {
            tuple(key.split()): value for key, value in entries.items() if not _HAN.search(key)
        }
        han = sorted((key for key in entries if _HAN.search(key)), key=len, reverse=True)
        self._han_values = {key: entries[key] for key in han}
        self._han = re.compile("|".join(map(re.escape, han))) if han else None

    @classmethod
    def read(cls, file: Path) -> Lexicon:
        """Read a lexicon; lines that begin with # are comments."""
        entries = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                key, *values = line.split("\t")
                entries[key] = tuple(values)
        return cls(entries)

    def single_words(self) -> dict[str, float]:
        """Return the first value of each entry that is one word, as a number."""
        return {
            words[0]: float(value[0]) for words, value in self._words.items() if len(words) == 1
        }

    def find(self, text: str) -> Iterator[LexiconHit]:
        """Find entries, the longest first where several begin at one place; none overlap."""
        yield from self._find_words(text)
        if self._han is not None:
            for match in self._han.finditer(text):
                before = text[max(0, match.start() - 2) : match.start()]
                yield LexiconHit(
                    self._han_values[match.group()],
                    Span(*match.span()),
                    before.endswith(_HAN_NEGATIONS) or before[:1] in ("不", "没"),
                )

    def _find_words(self, text: str) -> Iterator[LexiconHit]:
        found = list(_WORD.finditer(text))
        words = [match.group().casefold().replace("’", "'") for match in found]
        place = 0
        while place < len(words):
            for size in range(min(_MOST_WORDS, len(words) - place), 0, -1):
                values = self._words.get(tuple(words[place : place + size]))
                if values is not None:
                    span = Span(found[place].start(), found[place + size - 1].end())
                    before = words[max(0, place - _NEGATION_REACH) : place]
                    yield LexiconHit(values, span, not _NEGATIONS.isdisjoint(before))
                    place += size - 1
                    break
            place += 1


def lexicon_named(name: str) -> Lexicon:
    """Read one of the lexicons that ship."""
    return Lexicon.read(_FOLDER / f"{name}.tsv")
