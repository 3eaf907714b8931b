"""The language of a turn, by py3langid: offline, of the languages that a persona expects."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from serve_app.dialogue.nlu.understanding import Label, Span
from serve_app.errors import ConfigError

__all__ = ["LanguageDetector"]

_PRIOR = 3.0
_ENOUGH_LETTERS = 24


class LanguageDetector:
    """Tells languages apart.

    A short turn says little about its language (`ok`, `no`, `super`), so the one that is expected
    counts for more there, up to three times as much as another.

    Args:
        languages: ISO 639-1 codes of those that are possible.

    Raises:
        ConfigError: one of them is unknown.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self._identifier = copy.copy(_every_language())  # which shares the tables
        try:
            self._identifier.set_languages(list(languages))
        except ValueError as error:
            msg = f"{error}. Take ISO 639-1 codes out of: {', '.join(self._identifier.labels)}."
            raise ConfigError(msg) from None

    def detect(self, text: str, expected: str | None = None) -> Label:
        """Return the language of a text.

        Args:
            text: the turn.
            expected: the language of the turn before, or the persona's.
        """
        span = Span(0, len(text))
        letters = sum(map(str.isalpha, text))
        if not letters and expected is not None:
            return Label(expected, 0.5, span)
        ranked = self._identifier.rank(text)
        shortage = max(0.0, 1 - letters / _ENOUGH_LETTERS)
        prior = _PRIOR**shortage
        weighed = np.array([share * (prior if name == expected else 1) for name, share in ranked])
        best = int(weighed.argmax())
        return Label(ranked[best][0], float(weighed[best] / weighed.sum()), span)


@cache
def _every_language() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
