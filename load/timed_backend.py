"""A backend that keeps account of the time spent in another one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from serve_app.generation.backends.base import Backend, Piece

__all__ = ["RuntimeWork", "TimedBackend"]


@dataclass(frozen=True, slots=True)
class RuntimeWork:
    """What a backend has done, and the seconds that it took.

    Attributes:
        decode_s: in steps without prompts.
        mixed_s: in steps with prompts, in which others may have decoded as well.
        copy_s: moving, saving and loading K/V.
        decodes: steps without prompts.
        decoded: tokens decoded in them, drafts included.
        decode_past: tokens of K/V that each of those found there, added up.
        mixed: steps with prompts.
        prefilled: tokens of prompts computed in them.
        mixed_decoded: tokens decoded in them, drafts included.
        mixed_past: tokens of K/V that each of both kinds found there, added up.
    """

    decode_s: float = 0.0
    mixed_s: float = 0.0
    copy_s: float = 0.0
    decodes: int = 0
    decoded: int = 0
    decode_past: int = 0
    mixed: int = 0
    prefilled: int = 0
    mixed_decoded: int = 0
    mixed_past: int = 0

    def __sub__(self, earlier: RuntimeWork) -> RuntimeWork:
        return RuntimeWork(
            *(getattr(self, each.name) - getattr(earlier, each.name) for each in fields(self))
        )

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.decode_s + self.mixed_s + self.copy_s


class TimedBackend:
    """Passes everything on, and counts; the clock is read twice per call, which costs nothing.

    Args:
        backend: who does the work.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._decode_s = self._mixed_s = self._copy_s = 0.0
        self._decodes = self._decoded = self._decode_past = 0
        self._mixed = self._prefilled = self._mixed_decoded = self._mixed_past = 0

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._backend.vocab_size

    @property
    def context_length(self) -> int:
        """Most tokens of one sequence that the decoder was made for."""
        return self._backend.context_length

    @property
    def token_bytes(self) -> int:
        """Bytes of K/V that one token takes."""
        return self._backend.token_bytes

    @property
    def draft_rows(self) -> int:
        """Most tokens of drafts that a step takes."""
        return self._backend.draft_rows

    def work(self) -> RuntimeWork:
        """Return what has been done so far; exact while the engine has nothing to do."""
        return RuntimeWork(
            decode_s=self._decode_s,
            mixed_s=self._mixed_s,
            copy_s=self._copy_s,
            decodes=self._decodes,
            decoded=self._decoded,
            decode_past=self._decode_past,
            mixed=self._mixed,
            prefilled=self._prefilled,
            mixed_decoded=self._mixed_decoded,
            mixed_past=self._mixed_past,
        )

    def allocate(self, *, slots: int, max_len: int, blocks: int, block_tokens: int) -> None:
        """Take the memory; this isn't counted."""
        self._backend.allocate(
            slots=slots, max_len=max_len, blocks=blocks, block_tokens=block_tokens
        )

    def step(
        self,
        prompts: Sequence[Piece],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int32],
        drafts: Sequence[Piece] = (),
    ) -> NDArray[np.float32]:
        """Compute pieces of prompts, and one more token of the first n slots and what may follow it."""
        began = time.perf_counter()
        logits = self._backend.step(prompts, tokens, lengths, drafts)
        took = time.perf_counter() - began
        decoded = len(tokens) + sum(len(piece.tokens) for piece in drafts)
        past = int(lengths.sum()) + sum(map(_past, drafts))
        if not prompts:
            self._decode_s += took
            self._decodes += 1
            self._decoded += decoded
            self._decode_past += past
            return logits
        for piece in prompts:
            self._prefilled += len(piece.tokens)
            past += _past(piece)
        self._mixed_s += took
        self._mixed += 1
        self._mixed_decoded += decoded
        self._mixed_past += past
        return logits

    def vacate(self, slot: int, length: int) -> None:
        """Give a slot back; counted with the copies."""
        began = time.perf_counter()
        self._backend.vacate(slot, length)
        self._copy_s += time.perf_counter() - began

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot over another one."""
        began = time.perf_counter()
        self._backend.move(source, target, length)
        self._copy_s += time.perf_counter() - began

    def save(self, slot: int, start: int, block: int) -> None:
        """Copy a piece of a slot into a block."""
        began = time.perf_counter()
        self._backend.save(slot, start, block)
        self._copy_s += time.perf_counter() - began

    def load(self, blocks: Sequence[int], slot: int) -> None:
        """Copy blocks to the start of a slot."""
        began = time.perf_counter()
        self._backend.load(blocks, slot)
        self._copy_s += time.perf_counter() - began

    def make_room(self, lengths: Sequence[int], most: int) -> int:
        """Share the memory between slots and blocks; counted with the copies."""
        began = time.perf_counter()
        blocks = self._backend.make_room(lengths, most)
        self._copy_s += time.perf_counter() - began
        return blocks

    def drop(self, block: int) -> None:
        """Give a block back; counted with the copies."""
        began = time.perf_counter()
        self._backend.drop(block)
        self._copy_s += time.perf_counter() - began


def _past(piece: Piece) -> int:
    """Return the tokens of K/V that a piece's tokens find in their slot, added up."""
    size = len(piece.tokens)
    return size * piece.start + size * (size - 1) // 2
