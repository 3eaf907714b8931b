"""What the engine asks of a runtime: memory for K/V in slots, steps, and copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from serve_app.generation.config import EngineConfig
from serve_app.generation.sampling import Sampler

__all__ = ["Backend", "Choice", "Chosen", "Piece", "SamplingBackend"]


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

    def make_room(self, lengths: Sequence[int], most: int) -> int:
        """Give back what empty slots keep where blocks need it, and return how many of these may hold something.

        Args:
            lengths: tokens that each slot holds, [slots].
            most: tokens that the slots may come to hold together.
        """
        ...

    def drop(self, block: int) -> None:
        """Take note that nobody needs what is in a block; its memory may go back."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One sequence's next token, to be chosen from the logits behind its newest one.

    Attributes:
        sampler: how.
        ahead: tokens that were chosen and that the sampler has yet to be told of.
        token: the newest token; without meaning where `ahead` isn't 0, for then only the backend knows.
        length: tokens that the slot holds before it.
    """

    sampler: Sampler
    ahead: int
    token: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What came of a step.

    Attributes:
        tokens: ids, [n]; without meaning in the rows that are named below.
        broken: rows that were no finite numbers when the model had computed them.
        overflowed: rows that the request's own penalties and biases made infinite.
        unsampled: rows that the backend doesn't choose for, ascending.
        logits: of those, [rows, vocab]; the caller's to overwrite until the next call.
    """

    tokens: NDArray[np.int64]
    broken: frozenset[int]
    overflowed: frozenset[int]
    unsampled: tuple[int, ...]
    logits: NDArray[np.float32]


@runtime_checkable
class SamplingBackend(Backend, Protocol):
    """A backend that chooses tokens itself, so that a step can begin before the last one's are read.

    Steps that were enqueued and not collected are *in flight*. All calls but `collect` return before
    their work is done, and each sees what the ones before it will have written.

    Attributes:
        depth: most steps in flight.
    """

    @property
    def depth(self) -> int: ...  # noqa: D102

    def fitted(self, config: EngineConfig) -> EngineConfig:
        """Return limits that the device has memory for: these, or the same with fewer slots.

        Raises:
            ConfigError: there is no room for one slot.
        """
        ...

    def samples(self, sampler: Sampler) -> bool:
        """Tell whether it chooses for a sampler; else it hands out logits."""
        ...

    def enqueue(self, prompts: Sequence[Piece], choices: Sequence[Choice]) -> None:
        """Begin a step: pieces of prompts, then the next token of the sequences in slots 0 to n - 1.

        Args:
            prompts: as in `step`.
            choices: one per slot. Those that the backend doesn't choose for have nothing in flight.

        Raises:
            GeneratorLost: the device failed.
        """
        ...

    def collect(self) -> Chosen:
        """Wait for the oldest step in flight, and return what came of it.

        Raises:
            GeneratorLost: the device failed.
        """
        ...
