"""K/V in host memory: the slots of running sequences and an arena of blocks of earlier prefixes."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from serve_app.models.decoder_interface import DecoderInterface

__all__ = ["KVCache"]

# What an empty slot keeps of its memory: some hundred tokens of a small model.
_KEPT_BYTES = 8 << 20


class KVCache:
    """Slots and blocks, allocated once; memory that no token ever touched is not taken.

    A *plane* is one layer's keys or one layer's values. Slots are stored as
    [planes, slots, heads, max_len, dim], so that the first n slots of a plane, and one slot of a
    plane, are contiguous and can be handed to a runtime by pointer, while one numpy call copies a
    token range in all planes. Blocks are stored as [blocks, planes, heads, block_tokens, dim].

    A copy runs at the speed of the memory. With 46 KB per token (30 layers of 3 heads of 64 floats)
    500 tokens are 23 MB: a few milliseconds, where computing them again would take about a second.

    Attributes:
        slots: the array of slots.
        blocks: the array of blocks.
        block_tokens: tokens in one block.
        token_bytes: bytes of one token over all planes.
    """

    def __init__(
        self,
        *,
        planes: int,
        heads: int,
        dim: int,
        dtype: DTypeLike,
        slots: int,
        max_len: int,
        blocks: int = 0,
        block_tokens: int = 1,
    ) -> None:
        self.slots, self._slots_memory = _zeros((planes, slots, heads, max_len, dim), dtype)
        self.blocks, self._blocks_memory = _zeros((blocks, planes, heads, block_tokens, dim), dtype)
        self.block_tokens = block_tokens
        token_bytes = planes * heads * dim * self.slots.itemsize
        self._kept = _KEPT_BYTES // token_bytes
        # Of each slot, the tokens whose pages earlier sequences have left there.
        self._left = np.zeros(slots, np.int64)

    @classmethod
    def of(
        cls,
        interface: DecoderInterface,
        *,
        slots: int,
        max_len: int,
        blocks: int,
        block_tokens: int,
    ) -> Self:
        """Allocate what a decoder graph writes to."""
        return cls(
            planes=2 * interface.layers,
            heads=interface.kv_heads,
            dim=interface.head_dim,
            dtype=interface.cache_dtype,
            slots=slots,
            max_len=max_len,
            blocks=blocks,
            block_tokens=block_tokens,
        )

    def pointer(self, plane: int, slot: int) -> int:
        """Return the address at which a plane's slots from `slot` on start."""
        planes, slots = self.slots.strides[:2]
        return int(self.slots.ctypes.data) + plane * planes + slot * slots

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot over another slot."""
        self.slots[:, target, :, :length] = self.slots[:, source, :, :length]

    def vacate(self, slot: int, length: int) -> None:
        """Give the pages of a long sequence back to the system, but for its beginning.

        Without this, every slot would in time be as large as the longest sequence it ever held. The
        next sequence needs the beginning at once, and taking new pages costs more than filling them.

        Args:
            slot: whose sequence ended.
            length: tokens that it held.
        """
        length = max(length, int(self._left[slot]))
        self._left[slot] = min(length, self._kept)
        self._empty(slot, self._kept, length)

    def make_room(self, lengths: Sequence[int], most: int) -> int:
        """Give back what empty slots keep where blocks need it, and return how many of these may hold something.

        Slots and blocks together take no more than the blocks alone may, or full slots and a quarter of the
        blocks, for what many conversations begin with. Before blocks give way, empty slots give back what
        earlier sequences have left there.

        Args:
            lengths: tokens that each slot holds, [slots].
            most: tokens that the slots may come to hold together.
        """
        size, blocks = self.block_tokens, len(self.blocks)
        together = max(blocks * size, most + blocks // 4 * size)
        taken = np.maximum(lengths, self._left)
        for slot in range(len(lengths) - 1, -1, -1):
            if taken.sum() + blocks * size <= together:
                return blocks
            if not lengths[slot] and taken[slot]:
                self._empty(slot, 0, int(taken[slot]))
                self._left[slot] = taken[slot] = 0
        return int(min(max((together - taken.sum()) // size, blocks // 4), blocks))

    def drop(self, block: int) -> None:
        """Give the pages of a block back to the system."""
        size = self.blocks.strides[0]
        _give_back(self._blocks_memory, block * size, (block + 1) * size)

    def _empty(self, slot: int, start: int, end: int) -> None:
        """Give the pages of a slot's tokens from `start` to `end` back to the system."""
        if end <= start:
            return
        planes, slots, heads, tokens, _ = self.slots.strides
        for plane, head in itertools.product(range(len(self.slots)), range(self.slots.shape[2])):
            begin = plane * planes + slot * slots + head * heads
            _give_back(self._slots_memory, begin + start * tokens, begin + end * tokens)

    def save(self, slot: int, start: int, block: int) -> None:
        """Copy a block's worth of a slot's tokens, from `start` on, into a block."""
        self.blocks[block] = self.slots[:, slot, :, start : start + self.block_tokens]

    def load(self, blocks: Sequence[int], slot: int) -> None:
        """Copy blocks, one behind the other, to the start of a slot."""
        size = self.block_tokens
        for place, block in enumerate(blocks):
            self.slots[:, slot, :, place * size : (place + 1) * size] = self.blocks[block]


def _zeros(shape: tuple[int, ...], dtype: DTypeLike) -> tuple[NDArray[Any], mmap.mmap | None]:
    """Allocate memory page by page as it is touched.

    np.zeros asks for huge pages, and those would make whole slots resident for a few tokens: a
    head's tokens lie together, so a short sequence touches the beginning of many small ranges.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(shape, dtype), None
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # from a kernel that knows no huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape), memory


def _give_back(memory: mmap.mmap | None, start: int, end: int) -> None:
    """Give the whole pages between two bytes back to the system; it fills them with zeros when they are used.

    Those at the ends may be shared with what lies beside them.
    """
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = end // mmap.PAGESIZE * mmap.PAGESIZE
    if memory is not None and last > first:
        memory.madvise(mmap.MADV_DONTNEED, first, last - first)
