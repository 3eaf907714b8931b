"""The copies of a backend whose K/V lies in the memory of its own process."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.generation.kv_cache import KVCache

__all__ = ["HostMemory"]


class HostMemory:
    """Moves, vacates, saves, loads and drops in a `KVCache`, which `allocate` must have made."""

    _kv: KVCache

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot over another slot."""
        self._kv.move(source, target, length)

    def vacate(self, slot: int, length: int) -> None:
        """Give the memory of a slot that held `length` tokens back to the system."""
        self._kv.vacate(slot, length)

    def save(self, slot: int, start: int, block: int) -> None:
        """Copy a piece of a slot into a block."""
        self._kv.save(slot, start, block)

    def load(self, blocks: Sequence[int], slot: int) -> None:
        """Copy blocks to the start of a slot."""
        self._kv.load(blocks, slot)

    def make_room(self, lengths: Sequence[int], most: int) -> int:
        """Give back what empty slots keep where blocks need it; return how many of these may hold something."""
        return self._kv.make_room(lengths, most)

    def drop(self, block: int) -> None:
        """Give the memory of a block back to the system."""
        self._kv.drop(block)
