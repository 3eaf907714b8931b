"""The values of a persona's choices in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from serve_app.dialogue.nlu.understanding import Entity, Span

__all__ = ["ChoiceFinder"]


class ChoiceFinder:
    """Finds a choice by its name or by one of its further words, with an English plural's `s` or not.

    Args:
        choices: further words by value, by slot.
    """

    def __init__(self, choices: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        self._values = {
            slot: {
                word.casefold(): value
                for value, words in values.items()
                for word in (value, *words)
            }
            for slot, values in choices.items()
        }
        self._patterns = {slot: _pattern(words) for slot, words in self._values.items()}

    def find(self, text: str) -> Iterator[Entity]:
        """Find choices; the value is the choice's name."""
        for slot, pattern in self._patterns.items():
            for match in pattern.finditer(text):
                value = self._values[slot][match["word"].casefold()]
                span = Span(*match.span())
                yield Entity("choice", match.group(), value, 0.95, span, slot)


def _pattern(words: Mapping[str, str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    either = "|".join(map(re.escape, longest_first))
    # Han has no spaces between words, so only letters and digits of alphabets set a border.
    border = "[^\\W\\u3040-\\u9fff]"
    return re.compile(rf"(?<!{border})(?P<word>{either})s?(?!{border})", re.IGNORECASE)
