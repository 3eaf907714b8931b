"""What the engine asks of a runtime: memory for K/V in slots, steps, and copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Backend", "Piece"]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some tokens of one sequence that are to be computed, one behind the other.

    Attributes:
        slot: where their K/V goes.
        start: tokens that the slot holds before them.
        tokens: [n], n at least 1.
    """

    slot: int
    start: int
    tokens: NDArray[np.int64]


class Backend(Protocol):
    """Runs one decoder over its own K/V memory.

    The memory has two parts: *slots*, each of which holds one sequence's K/V, and *blocks*, which
    hold pieces of finished prefixes. Both belong to the backend and may lie on a device; the engine
    names them by number only. Calls come from one thread, in order, and each sees what the ones
    before it have written.

    Attributes:
        vocab_size: width of the logits.
        context_length: most tokens of one sequence that the decoder was made for.
        token_bytes: bytes of K/V that one token takes.
        draft_rows: most tokens of drafts that a step takes, 0 if it takes none.
    """

    @property
    def vocab_size(self) -> int: ...  # noqa: D102

    @property
    def context_length(self) -> int: ...  # noqa: D102

    @property
    def token_bytes(self) -> int: ...  # noqa: D102

    @property
    def draft_rows(self) -> int: ...  # noqa: D102

    def allocate(self, *, slots: int, max_len: int, blocks: int, block_tokens: int) -> None:
        """Take the memory; called once, before anything else.

        Args:
            slots: sequences that fit at once.
            max_len: tokens of one slot.
            blocks: pieces of prefixes that fit at once; may be 0.
            block_tokens: tokens of one block.
        """
        ...

    def step(
        self,
        prompts: Sequence[Piece],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int32],
        drafts: Sequence[Piece] = (),
    ) -> NDArray[np.float32]:
        """Compute K/V of pieces of prompts, then one more token of the sequences in slots 0 to n - 1.

        Drafts are guesses of what follows some of these tokens, computed as if they were right. Where
        one is wrong, the engine writes over what it has left in the slot.

        Args:
            prompts: pieces of prompts, in any slots. Where a prompt's last piece is among them, its
                last token may be among the tokens of the same step.
            tokens: the newest token of each sequence, [n]; n may be 0.
            lengths: tokens that each of these slots holds before it, pieces of this step included, [n].
            drafts: guesses, at most one piece for each of these slots, `draft_rows` tokens altogether.

        Returns:
            Logits [n + tokens of drafts, vocab], first those behind `tokens`, then those behind each
            draft's; the caller's to overwrite until the next call.
        """
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot over another slot."""
        ...

    def vacate(self, slot: int, length: int) -> None:
        """Take note that nobody needs the `length` tokens of a slot; their memory may go back."""
        ...

    def save(self, slot: int, start: int, block: int) -> None:
        """Copy `block_tokens` tokens of a slot, from `start` on, into a block."""
        ...

    def load(self, blocks: Sequence[int], slot: int) -> None:
        """Copy blocks, one behind the other, to the start of a slot."""
        ...
