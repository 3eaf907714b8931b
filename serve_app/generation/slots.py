"""Which sequence lies in which slot: the decoding ones without gaps from slot 0 on."""

from __future__ import annotations

from collections.abc import Callable

from serve_app.generation.sequence import Sequence

__all__ = ["Slots"]


class Slots:
    """The slots of a backend and who is in them.

    A decode step runs over slots 0 to n - 1, so decoding sequences must be dense when it starts.
    Somebody has to fill the slot of one that ended. A newly admitted sequence does it for nothing,
    if its whole prompt is computed before that decode; else the sequence in the last slot is
    copied, which costs milliseconds. So gaps stay open until a decode needs them closed.

    A sequence whose prompt takes several steps stays behind the decoding ones, where a decode
    doesn't touch it. There is only one such at a time, and while it is there nobody else starts
    to decode, so it is never in the way.

    Args:
        count: number of slots.
        move: copies (source slot, target slot, tokens).
        vacate: told of each slot that has become free, and of the tokens it held.
    """

    def __init__(
        self, count: int, move: Callable[[int, int, int], None], vacate: Callable[[int, int], None]
    ) -> None:
        self._seats: list[Sequence | None] = [None] * count
        self._move = move
        self._vacate = vacate
        self._taken = 0

    @property
    def count(self) -> int:
        """Number of slots."""
        return len(self._seats)

    @property
    def free(self) -> int:
        """Number of slots with nobody in them."""
        return len(self._seats) - self._taken

    def lengths(self) -> list[int]:
        """Return how many tokens each slot holds, 0 where nobody is in it."""
        return [0 if sequence is None else sequence.computed for sequence in self._seats]

    def take_first(self, sequence: Sequence) -> None:
        """Give a sequence that is about to decode the lowest free slot."""
        self._seat(sequence, self._seats.index(None))

    def take_behind(self, sequence: Sequence) -> None:
        """Give a sequence that is not going to decode yet the slot behind those that are."""
        self.close_gaps(prefilling=None)
        self._seat(sequence, self._taken)

    def release(self, sequence: Sequence) -> None:
        """Take the slot from a sequence."""
        self._vacate(sequence.slot, sequence.computed)
        self._seats[sequence.slot] = None
        self._taken -= 1
        sequence.slot = -1

    def close_gaps(self, *, prefilling: Sequence | None) -> list[Sequence]:
        """Make the decoding sequences dense, with as few copies as there are gaps.

        Args:
            prefilling: the sequence that stays where it is, behind the others.

        Returns:
            The decoding sequences; each one's place in the list is its slot.
        """
        decoding = self._taken - (prefilling is not None)
        gaps = [slot for slot in range(decoding) if self._seats[slot] is None]
        for slot in range(len(self._seats) - 1, decoding - 1, -1):
            sequence = self._seats[slot]
            if sequence is None or sequence is prefilling:
                continue
            target = gaps.pop()
            self._move(slot, target, sequence.computed)
            self._vacate(slot, sequence.computed)
            self._seats[slot] = None
            self._seats[target] = sequence
            sequence.slot = target
        return [sequence for sequence in self._seats[:decoding] if sequence is not None]

    def running(self) -> list[Sequence]:
        """Return every sequence that has a slot."""
        return [sequence for sequence in self._seats if sequence is not None]

    def _seat(self, sequence: Sequence, slot: int) -> None:
        self._seats[slot] = sequence
        self._taken += 1
        sequence.slot = slot
