"""The decoder on Parley's own operators: the native form of the graph, in half-precision K/V."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import ConfigError
from serve_app.generation.backends.base import Piece
from serve_app.generation.backends.host_memory import HostMemory
from serve_app.generation.backends.session import bind_input, bind_output, open_session
from serve_app.generation.kv_cache import KVCache
from serve_app.models.decoder_interface import (
    INPUT_IDS,
    KEY_TILE,
    LOGIT_ROWS,
    LOGITS,
    POSITIONS,
    SLOTS,
    DecoderInterface,
)

__all__ = ["NativeBackend"]

# Logits of as many rows are allocated beyond those of the slots.
_DRAFT_ROWS = 16


class NativeBackend(HostMemory):
    """Runs `decoder.onnx` over rows that name their slot and position; the cache is bound once.

    Keys are stored by tiles of 16 positions, [dim, 16] each, so whatever copies tokens copies whole
    tiles; apart from that a slot looks as any other backend's.

    Args:
        directory: a prepared model's folder.
        interface: what its graph looks like.
        threads: threads that share an operator, at least 1.

    Raises:
        ModelError: the graph can't be loaded.
    """

    def __init__(self, directory: Path, interface: DecoderInterface, *, threads: int) -> None:
        self.vocab_size = interface.vocab_size
        self.context_length = interface.context_length
        self.token_bytes = interface.token_bytes
        self.draft_rows = _DRAFT_ROWS
        self._interface = interface
        self._session = open_session(directory, interface, threads=threads)

    def allocate(self, *, slots: int, max_len: int, blocks: int, block_tokens: int) -> None:
        """Take K/V memory and the small buffers that every run is bound to.

        Raises:
            ConfigError: blocks are no whole tiles.
        """
        if blocks and block_tokens % KEY_TILE:
            msg = (
                f"generator.prefix_block is {block_tokens}; this model's cache is copied by "
                f"{KEY_TILE} tokens, so set it to a multiple of that."
            )
            raise ConfigError(msg, param="generator.prefix_block")
        interface = self._interface
        length = -(-max_len // KEY_TILE) * KEY_TILE
        self._kv = KVCache.of(
            interface, slots=slots, max_len=length, blocks=blocks, block_tokens=block_tokens
        )
        self._tokens = np.zeros(0, np.int64)
        self._make_room(max(slots, max_len))
        self._all_rows = np.arange(slots + _DRAFT_ROWS, dtype=np.int64)
        self._logits = np.zeros((slots + _DRAFT_ROWS, interface.vocab_size), np.float32)
        self._binding = self._session.io_binding()
        dtype = np.dtype(interface.cache_dtype).type
        shape = interface.cache_shape(slots, length)
        for plane, (past, _) in enumerate(interface.cache_names):
            pointer = self._kv.pointer(plane, 0)
            self._binding.bind_input(past, "cpu", 0, dtype, shape, pointer)

    def step(
        self,
        prompts: Sequence[Piece],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int32],
        drafts: Sequence[Piece] = (),
    ) -> NDArray[np.float32]:
        """Compute everything in one run, so that the weights are read once; see `Backend.step`."""
        at = len(tokens)
        rows = at + sum(len(piece.tokens) for piece in drafts)
        size = rows + sum(len(piece.tokens) for piece in prompts)
        self._make_room(size)
        # Those whose logits are wanted come first.
        self._tokens[:at] = tokens
        self._slots[:at] = self._all_rows[:at]
        self._positions[:at] = lengths
        for piece in (*drafts, *prompts):
            part = slice(at, at + len(piece.tokens))
            self._tokens[part] = piece.tokens
            self._slots[part] = piece.slot
            self._positions[part] = np.arange(piece.start, piece.start + len(piece.tokens))
            at = part.stop
        logits = self._logits[:rows]
        for name, array in (
            (INPUT_IDS, self._tokens[:size]),
            (SLOTS, self._slots[:size]),
            (POSITIONS, self._positions[:size]),
            (LOGIT_ROWS, self._all_rows[:rows]),
        ):
            bind_input(self._binding, name, array)
        bind_output(self._binding, LOGITS, logits)
        self._session.run_with_iobinding(self._binding)
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot over another slot, by whole tiles."""
        super().move(source, target, -(-length // KEY_TILE) * KEY_TILE)

    def _make_room(self, size: int) -> None:
        if size > len(self._tokens):
            self._tokens = np.zeros(size, np.int64)
            self._slots = np.zeros(size, np.int32)
            self._positions = np.zeros(size, np.int32)
