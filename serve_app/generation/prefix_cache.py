"""Which prefixes are kept, and in which blocks: chained hashes and least recently used eviction."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["PrefixCache"]


class PrefixCache:
    """An index of blocks by the tokens in them and everything before them.

    A block's name is the hash of its parent's name and its own tokens, so that equal names mean
    equal prefixes (128 bits of BLAKE2b) and a shared persona is stored once, however many
    conversations begin with it. Source: hash-based prefix caching as in vLLM.

    The K/V itself lies in the backend; this class says what to copy where.

    Args:
        blocks: blocks that the backend holds.
        block_tokens: tokens in one block.
    """

    def __init__(self, *, blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.capacity = blocks
        self._most = blocks
        self._free = list(range(blocks - 1, -1, -1))
        # Name to block, least recently used first. Whoever touches a block touches its parents
        # after it, so a parent is always younger than its children and the oldest entry is a leaf:
        # eviction never leaves a child that no walk from the root can reach.
        self._blocks: OrderedDict[bytes, int] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks that hold something."""
        return len(self._blocks)

    def match(self, tokens: NDArray[np.int64]) -> list[int]:
        """Return the blocks of the longest stored prefix, to be copied before the next `store`.

        At least three tokens are left over: the last one, because somebody has to compute the logits
        behind it, and two more, because one is not computed alone (see `Scheduler.chunk`).

        Args:
            tokens: the whole prompt.
        """
        found: list[bytes] = []
        for name in self._names(tokens[:-3]):
            if name not in self._blocks:
                break
            found.append(name)
        self._touch(found)
        return [self._blocks[name] for name in found]

    def store(self, tokens: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Make room for a prefix and return what has to be copied.

        Args:
            tokens: those whose K/V is there; what doesn't fill a block is left out.

        Returns:
            (start, block) pairs: the tokens from `start` on belong into `block`.
        """
        names = list(self._names(tokens))
        known = next((i for i, name in enumerate(names) if name not in self._blocks), len(names))
        self._touch(names[:known])
        copies: list[tuple[int, int]] = []
        for place in range(known, len(names)):
            block = self._take(not_from=names)
            if block is None:
                break
            self._blocks[names[place]] = block
            copies.append((place * self.block_tokens, block))
        self._touch(names[: known + len(copies)])
        return copies

    def limit(self, most: int) -> list[int]:
        """Hold no more than some blocks until told otherwise, and return those that are given up for that.

        Args:
            most: blocks that may hold something.
        """
        self._most = most
        given_up = []
        while self.used > most:
            _, block = self._blocks.popitem(last=False)
            given_up.append(block)
        self._free.extend(given_up)
        return given_up

    def clear(self) -> list[int]:
        """Forget everything, and return the blocks that held it."""
        given_up = list(self._blocks.values())
        self._blocks.clear()
        self._free.extend(given_up)
        return given_up

    def _take(self, *, not_from: list[bytes]) -> int | None:
        """Return a block to write to; None when only the prefix that needs it is left to evict."""
        if self._free and self.used < self._most:
            return self._free.pop()
        oldest = next(iter(self._blocks), None)
        if oldest is None or oldest in not_from:
            return None
        return self._blocks.pop(oldest)

    def _touch(self, chain: list[bytes]) -> None:
        for name in reversed(chain):
            self._blocks.move_to_end(name)

    def _names(self, tokens: NDArray[np.int64]) -> Iterator[bytes]:
        size = self.block_tokens
        parent = b""
        for start in range(0, len(tokens) - size + 1, size):
            block = tokens[start : start + size].tobytes()
            parent = hashlib.blake2b(parent + block, digest_size=16).digest()
            yield parent
