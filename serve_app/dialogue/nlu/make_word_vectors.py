"""`python -m serve_app.dialogue.nlu.make_word_vectors`: word vectors out of the bundled model.

A language model's token embeddings are vectors of words. Of SmolLM2-135M-Instruct's (Apache-2.0), this
takes the tokens that are whole English words, centres them, drops the few directions that all words
share, keeps the next ones by principal components, and rounds them to 8 bits. Sources: Mu and
Viswanath 2018 (all but the top); Arora et al. 2017 for weighing words by how rare they are, for which
a word's rank stands: byte pair encoding merges frequent ones first.
"""

from __future__ import annotations

import json
import re
from typing import Final

import numpy as np

from serve_app.dialogue.nlu.word_vectors import VECTORS_FILE, WordVectors
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint

__all__ = ["word_vectors_of"]

_DIMENSIONS: Final = 96
_SHARED: Final = 4
_RARE_FROM: Final = 2000
_WORD = re.compile(r"Ġ([a-z]{2,}|[ai])")
_EMBEDDINGS = "model.embed_tokens.weight"


def word_vectors_of(checkpoint: GgufCheckpoint) -> WordVectors:
    """Return the word vectors of a model with a byte-level tokenizer.

    Raises:
        ModelError: the checkpoint can't be read.
    """
    vocabulary: dict[str, int] = json.loads(checkpoint.tokenizer().tokenizer_json)["model"]["vocab"]
    found = sorted(
        (token, match[1]) for word, token in vocabulary.items() if (match := _WORD.fullmatch(word))
    )
    tokens = np.array([token for token, _ in found])
    rows = checkpoint.tensor(_EMBEDDINGS)[tokens].astype(np.float64)
    rows -= rows.mean(0)
    _, directions = np.linalg.eigh(rows.T @ rows)
    kept = directions[:, ::-1][:, _SHARED : _SHARED + _DIMENSIONS]
    kept = kept * np.where(kept[np.abs(kept).argmax(0), np.arange(_DIMENSIONS)] < 0, -1, 1)
    projected = rows @ kept
    scaled = projected / np.abs(projected).max(1, keepdims=True)
    weights = np.minimum(1, np.sqrt(tokens / _RARE_FROM)).astype(np.float32)
    places = {word: row for row, (_, word) in enumerate(found)}
    return WordVectors(places, np.round(scaled * 127).astype(np.int8), weights)


if __name__ == "__main__":
    word_vectors_of(GgufCheckpoint(bundled_model())).write(VECTORS_FILE)
