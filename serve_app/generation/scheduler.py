"""Who is admitted when, and how much of whose prompt is computed in a step."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from serve_app.generation.sequence import Sequence
from serve_app.generation.slots import Slots

__all__ = ["Scheduler"]

# Chunks that are computed as one while nobody decodes who would have to wait for them: larger
# ones are more efficient, and this is still short enough to notice a cancellation in time.
_CHUNKS_WHILE_IDLE = 4


class Scheduler:
    """First come first served within a priority, by free slots and free tokens.

    Prompts are computed one after the other: a second one that started early would finish no
    sooner and hold up the first. So a sequence is admitted when there is budget to compute some of
    its prompt now, and at most one, `prefilling`, is left unfinished at the end of a step.

    Args:
        slots: where sequences go.
        max_cached_tokens: most tokens that running sequences may come to hold together.
        prefill_chunk: most prompt tokens in a step in which others decode.

    Attributes:
        waiting: sequences without a slot, in the order of admission.
        prefilling: the sequence whose prompt is partly computed.
        reserved: tokens that the running sequences may come to hold.
    """

    def __init__(self, slots: Slots, *, max_cached_tokens: int, prefill_chunk: int) -> None:
        self.waiting: list[Sequence] = []
        self.prefilling: Sequence | None = None
        self.reserved = 0
        self._slots = slots
        self._max_cached_tokens = max_cached_tokens
        self._prefill_chunk = prefill_chunk

    def add(self, sequence: Sequence) -> None:
        """Put a sequence into the queue."""
        insort(self.waiting, sequence, key=attrgetter("rank"))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free what it held."""
        if not sequence.running:
            self.waiting.remove(sequence)
            return
        self._slots.release(sequence)
        self.reserved -= sequence.reserved
        if sequence is self.prefilling:
            self.prefilling = None

    @property
    def decoding_count(self) -> int:
        """Number of sequences whose prompt is done."""
        return self._slots.count - self._slots.free - (self.prefilling is not None)

    @property
    def coming_count(self) -> int:
        """Sequences that will decode as soon as their prompts are computed: there is a slot for each."""
        waiting = min(len(self.waiting), self._slots.free)
        return waiting + (self.prefilling is not None)

    def budget(self, bearable: float) -> int:
        """Return how many prompt tokens this step may compute.

        Args:
            bearable: how many those who decode would bear.
        """
        if self.decoding_count == 0:
            return _CHUNKS_WHILE_IDLE * self._prefill_chunk
        return int(min(self._prefill_chunk, bearable))

    def can_admit(self) -> bool:
        """Tell whether the head of the queue may have a slot now.

        Nobody overtakes a head that has to wait for tokens, else it could wait for ever.
        """
        return (
            self.prefilling is None
            and bool(self.waiting)
            and self._slots.free > 0
            and self.reserved + self.waiting[0].reserved <= self._max_cached_tokens
        )

    def admit(self, *, cached: int, budget: int, now: float) -> Sequence:
        """Give the head of the queue a slot.

        Args:
            cached: tokens of it that will come from the prefix cache.
            budget: prompt tokens that this step may still compute.
            now: monotonic seconds.
        """
        sequence = self.waiting[0]
        sequence.computed = sequence.cached = cached
        sequence.admitted_at = now
        if sequence.uncomputed - 1 <= budget:
            self._slots.take_first(sequence)
        else:
            self._slots.take_behind(sequence)
        # Whatever fails before this leaves it in the queue.
        self.waiting.pop(0)
        self.reserved += sequence.reserved
        self.prefilling = sequence
        return sequence

    def chunk(self, sequence: Sequence, budget: int) -> int:
        """Return how many tokens of a prompt to compute now, its last one not counted; 0 for none.

        Never one alone, unless there is no more: runtimes compute a single token as they do in a
        decode step, with other roundings, and then a reply would depend on how its prompt happened
        to be cut.
        """
        left = sequence.uncomputed - 1
        size = min(budget, left)
        if left - size == 1:
            size -= 1
        return 0 if size == 1 < left else size

    def prefilled(self) -> None:
        """Take note that the prompt of `prefilling` is computed: it decodes from now on."""
        self.prefilling = None

    def decoding(self) -> list[Sequence]:
        """Return the sequences to decode; each one's place in the list is its slot."""
        return self._slots.close_gaps(prefilling=self.prefilling)

    def running(self) -> list[Sequence]:
        """Return every sequence that has a slot."""
        return self._slots.running()
