"""A decoder that computes next to nothing, to measure and test everything around it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serve_app.generation.backends.base import Piece
from serve_app.generation.backends.host_memory import HostMemory
from serve_app.generation.kv_cache import KVCache

__all__ = ["SimulatedBackend"]

_FACTOR_INTS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN_INT = 0x9E3779B97F4A7C15
_FACTORS = (np.uint64(_FACTOR_INTS[0]), np.uint64(_FACTOR_INTS[1]))
_GOLDEN = np.uint64(_GOLDEN_INT)
_MASK = (1 << 64) - 1
# Of a vocabulary's beginning, where the most frequent pieces of words are.
_SPOKEN_WIDTH = 1024
# The likeliest tokens of every step and their logits, all others having 0: close enough together
# that sampling has a choice, far enough from the rest that it never takes one of those.
_CANDIDATES = np.array([30.0, 29.5, 29.0, 28.5], np.float32)
_DRAFT_ROWS = 16


class SimulatedBackend(HostMemory):
    """Hashes instead of a transformer: the next token depends on every token before it.

    What is kept in the slots is a chained hash, the one of each position made from the one before
    it and its token. So a sequence that reads another's slot, an old slot, or one that was copied
    wrongly, goes on with wrong tokens, and comparing with a run alone shows it.

    Args:
        vocab_size: number of tokens.
        logits_width: width of the logits, all tokens' if None; small is fast. Tokens beyond it are
            taken, and never chosen.
        context_length: most tokens of one sequence.
        step_s: seconds that a decode step takes, however many sequences are in it.
        prefill_token_s: seconds that a prompt token takes.
        avoid: token ids that are never likely, such as EOS.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 512,
        logits_width: int | None = None,
        context_length: int = 8192,
        step_s: float = 0.0,
        prefill_token_s: float = 0.0,
        avoid: Sequence[int] = (),
    ) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.token_bytes = 8
        self.draft_rows = _DRAFT_ROWS
        self._step_s = step_s
        self._prefill_token_s = prefill_token_s
        self._width = vocab_size if logits_width is None else logits_width
        self._likely = np.setdiff1d(np.arange(self._width), np.array(avoid, np.int64))

    @classmethod
    def speaking(cls, tokenizer_file: Path, *, vocab_size: int, context_length: int) -> Self:
        """Return one whose every token is text: none is special, or a part of a character.

        Args:
            tokenizer_file: tokenizer.json of the model that it stands for.
            vocab_size: number of that model's tokens.
            context_length: most tokens of one sequence.
        """
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        width = min(vocab_size, _SPOKEN_WIDTH)
        texts = tokenizer.decode_batch([[token] for token in range(width)])
        return cls(
            vocab_size=vocab_size,
            logits_width=width,
            context_length=context_length,
            avoid=[token for token, text in enumerate(texts) if not text or "\ufffd" in text],
        )

    def allocate(self, *, slots: int, max_len: int, blocks: int, block_tokens: int) -> None:
        """Take memory for one hash per token."""
        self._kv = KVCache(
            planes=1,
            heads=1,
            dim=1,
            dtype=np.uint64,
            slots=slots,
            max_len=max_len,
            blocks=blocks,
            block_tokens=block_tokens,
        )
        self._hashes: NDArray[np.uint64] = self._kv.slots[0, :, 0, :, 0]
        self._logits = np.zeros((slots + _DRAFT_ROWS, self._width), np.float32)

    def step(
        self,
        prompts: Sequence[Piece],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int32],
        drafts: Sequence[Piece] = (),
    ) -> NDArray[np.float32]:
        """Chain the hashes of pieces of prompts, then those of the first n slots; see `Backend.step`."""
        for piece in prompts:
            _wait(self._prefill_token_s * len(piece.tokens))
            self._extend(piece)
        if not len(tokens):
            return self._logits[:0]
        _wait(self._step_s)
        states = [self._decode(tokens, lengths), *map(self._extend, drafts)]
        return self._logits_of(np.concatenate(states))

    def _extend(self, piece: Piece) -> NDArray[np.uint64]:
        row, start = self._hashes[piece.slot], piece.start
        state = int(row[start - 1]) if start else 0
        states = []
        # One hash needs the one before it, and numpy is slow with single numbers.
        for token in piece.tokens.tolist():
            state = _chain_one(state, token)
            states.append(state)
        hashes = np.array(states, np.uint64)
        row[start : start + len(hashes)] = hashes
        return hashes

    def _decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> NDArray[np.uint64]:
        slots = np.arange(len(tokens))
        before = np.where(lengths > 0, self._hashes[slots, lengths - 1], np.uint64(0))
        states = _chain(before, tokens)
        self._hashes[slots, lengths] = states
        return states

    def _logits_of(self, states: NDArray[np.uint64]) -> NDArray[np.float32]:
        logits = self._logits[: len(states)]
        logits.fill(0.0)
        rows = np.arange(len(states))
        # From the last, so that the likeliest stays where two candidates are the same token.
        for rank in range(len(_CANDIDATES) - 1, -1, -1):
            places = _mix(states + np.uint64(rank + 1)) % np.uint64(len(self._likely))
            logits[rows, self._likely[places]] = _CANDIDATES[rank]
        return logits


def _wait(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


def _chain(states: NDArray[np.uint64], tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
    return _mix(states * _GOLDEN + tokens.astype(np.uint64) + np.uint64(1))


def _chain_one(state: int, token: int) -> int:
    """Do what `_chain` does, to one hash."""
    word = (state * _GOLDEN_INT + token + 1) & _MASK
    word = ((word ^ (word >> 30)) * _FACTOR_INTS[0]) & _MASK
    word = ((word ^ (word >> 27)) * _FACTOR_INTS[1]) & _MASK
    return word ^ (word >> 31)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words. Source: SplitMix64 (Steele, Lea and Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * _FACTORS[0]
    words = (words ^ (words >> np.uint64(27))) * _FACTORS[1]
    return words ^ (words >> np.uint64(31))
