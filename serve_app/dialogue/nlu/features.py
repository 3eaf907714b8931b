"""A sentence as hashed word and character n-grams, and as the mean of its words' vectors."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

from serve_app.dialogue.nlu.word_vectors import shipped_vectors

__all__ = ["FEATURES_VERSION", "MOST_CHARACTERS", "Features", "features_of"]

FEATURES_VERSION = 1
"""Changes when a sentence's features do: models that were fitted before are fitted anew."""

MOST_CHARACTERS = 500
"""Characters of a turn that are looked at: who wants something says so early."""

_BUCKETS = 1 << 20
_WORD_GRAMS = (1, 2)
_CHARACTER_GRAMS = (3, 4)
_HAN_GRAMS = (1, 2, 3)

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]+|[^\W_]+(?:'[^\W_]+)?|[?!]")
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a classifier sees of a sentence.

    Attributes:
        words: how often each n-gram of words is in it, by its hash.
        characters: the same of characters.
        meaning: mean of its words' vectors; `[dimensions]`.
    """

    words: dict[int, int]
    characters: dict[int, int]
    meaning: npt.NDArray[np.float32]


def features_of(text: str) -> Features:
    """Return the features of a sentence.

    Letter case, the form of letters and the values of numbers make no difference. Han and kana, which
    have no spaces, are taken by characters.
    """
    plain = unicodedata.normalize("NFKC", text[:MOST_CHARACTERS]).casefold().replace("’", "'")
    tokens = _TOKEN.findall(_DIGITS.sub("0", plain))
    return Features(
        _counted(_word_grams(tokens)),
        _counted(_character_grams(tokens)),
        shipped_vectors().mean(plain),
    )


def _word_grams(tokens: list[str]) -> Iterator[str]:
    framed = ["<", *tokens, ">"]
    for size in _WORD_GRAMS:
        for place in range(len(framed) - size + 1):
            gram = framed[place : place + size]
            if gram not in (["<"], [">"]):
                yield "w" + " ".join(gram)


def _character_grams(tokens: list[str]) -> Iterator[str]:
    for token in tokens:
        han = token[0] >= "\u3040"
        framed = token if han else f" {token} "
        for size in _HAN_GRAMS if han else _CHARACTER_GRAMS:
            for place in range(len(framed) - size + 1):
                yield "c" + framed[place : place + size]


def _counted(grams: Iterator[str]) -> dict[int, int]:
    return Counter(crc32(gram.encode("utf-8", "surrogatepass")) % _BUCKETS for gram in grams)
