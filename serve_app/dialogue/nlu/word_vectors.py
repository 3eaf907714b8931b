"""Vectors of English words, so that a sentence is near others that say the same in other words."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["VECTORS_FILE", "WordVectors", "shipped_vectors"]

VECTORS_FILE = Path(__file__).parent / "word_vectors.npz"
"""Made by `python -m serve_app.dialogue.nlu.make_word_vectors`, which says out of what."""

_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True, eq=False)
class WordVectors:
    """A table of words.

    Attributes:
        places: row of each word, in lower case.
        vectors: directions, in steps of a row's own; int8 `[words, dimensions]`.
        weights: how much a word says: little where it is frequent; `[words]`.
    """

    places: dict[str, int]
    vectors: npt.NDArray[np.int8]
    weights: npt.NDArray[np.float32]

    @classmethod
    def read(cls, file: Path) -> WordVectors:
        """Read a table.

        Raises:
            OSError: the file can't be read.
        """
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            words = arrays["words"].tobytes().decode().split("\n")
            vectors, weights = arrays["vectors"], arrays["weights"].astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float32))
        return cls({word: row for row, word in enumerate(words)}, vectors, weights / lengths)

    def write(self, file: Path) -> None:
        """Write the table; `weights` are taken for directions of length 1."""
        words = np.frombuffer("\n".join(self.places).encode(), np.uint8)
        np.savez_compressed(
            file, words=words, vectors=self.vectors, weights=self.weights.astype(np.float16)
        )

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    def mean(self, text: str) -> npt.NDArray[np.float32]:
        """Return the direction of a sentence's known words, of length 1, or 0 if it has none.

        Args:
            text: in lower case.
        """
        rows = [self.places[word] for word in _WORD.findall(text) if word in self.places]
        if not rows:
            return np.zeros(self.dimensions, np.float32)
        total: npt.NDArray[np.float32] = self.weights[rows] @ self.vectors[rows].astype(np.float32)
        return total / max(float(np.linalg.norm(total)), 1e-6)


@cache
def shipped_vectors() -> WordVectors:
    """Return the table that ships, read once."""
    return WordVectors.read(VECTORS_FILE)
