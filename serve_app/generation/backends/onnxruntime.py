"""The decoder on ONNX Runtime's CPU kernels: the cpu form of the graph, writing K/V in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.generation.backends.base import Piece
from serve_app.generation.backends.host_memory import HostMemory
from serve_app.generation.backends.session import bind_input, bind_output, open_session
from serve_app.generation.kv_cache import KVCache
from serve_app.models.decoder_interface import (
    INPUT_IDS,
    LOGIT_ROWS,
    LOGITS,
    SEQLENS_K,
    TOTAL_SEQUENCE_LENGTH,
    DecoderInterface,
)

__all__ = ["OnnxRuntimeBackend"]


class OnnxRuntimeBackend(HostMemory):
    """Runs `decoder.onnx` over slots that are bound by pointer, so that no K/V is ever copied.

    A decode step binds the first n slots of every layer's buffer as a batch of n; a prefill binds
    one slot as a batch of one. Past and present are the same memory. Bindings are kept per (first
    slot, batch), because binding a cache of 30 layers anew costs a tenth of a millisecond or more.

    Args:
        directory: a prepared model's folder.
        interface: what its graph looks like.
        threads: threads of the runtime, at least 1.

    Raises:
        ModelError: the graph can't be loaded.
    """

    def __init__(self, directory: Path, interface: DecoderInterface, *, threads: int) -> None:
        self.vocab_size = interface.vocab_size
        self.context_length = interface.context_length
        self.token_bytes = interface.token_bytes
        self.draft_rows = 0  # the runtime's attention takes one token of a slot in a batch
        self._interface = interface
        self._session = open_session(directory, interface, threads=threads)
        self._bindings: dict[tuple[int, int], Any] = {}

    def allocate(self, *, slots: int, max_len: int, blocks: int, block_tokens: int) -> None:
        """Take K/V memory and the small buffers that every run is bound to."""
        interface = self._interface
        self._max_len = max_len
        self._kv = KVCache.of(
            interface, slots=slots, max_len=max_len, blocks=blocks, block_tokens=block_tokens
        )
        self._tokens = np.zeros(max(slots, max_len), np.int64)
        self._lengths = np.zeros(slots, np.int32)  # with the new tokens, less 1
        self._total = np.zeros((), np.int32)
        self._all_rows = np.arange(slots, dtype=np.int64)
        self._logits = np.zeros((slots, interface.vocab_size), np.float32)
        self._bindings.clear()

    def step(
        self,
        prompts: Sequence[Piece],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int32],
        drafts: Sequence[Piece] = (),  # noqa: ARG002  (there are none)
    ) -> NDArray[np.float32]:
        """Compute piece by piece, then the tokens in one batch; see `Backend.step`."""
        for piece in prompts:
            size = len(piece.tokens)
            self._tokens[:size] = piece.tokens
            self._lengths[0] = piece.start + size - 1
            self._run(piece.slot, batch=1, sequence=size, longest=piece.start + size, rows=0)
        batch = len(tokens)
        if batch:
            self._tokens[:batch] = tokens
            self._lengths[:batch] = lengths
            longest = int(lengths.max()) + 1
            self._run(0, batch=batch, sequence=1, longest=longest, rows=batch)
        return self._logits[:batch]

    def _run(self, slot: int, *, batch: int, sequence: int, longest: int, rows: int) -> None:
        """Run the graph over `batch` slots from `slot` on; tokens and lengths are in place.

        Logits are computed for the first `rows` of [batch * sequence].
        """
        self._total[...] = longest
        binding = self._bindings.get((slot, batch))
        if binding is None:
            binding = self._bindings[slot, batch] = self._bind_cache(slot, batch)
            bind_input(binding, SEQLENS_K, self._lengths[:batch])
            bind_input(binding, TOTAL_SEQUENCE_LENGTH, self._total)
        bind_input(binding, INPUT_IDS, self._tokens[: batch * sequence].reshape(batch, sequence))
        bind_input(binding, LOGIT_ROWS, self._all_rows[:rows])
        bind_output(binding, LOGITS, self._logits[:rows])
        self._session.run_with_iobinding(binding)

    def _bind_cache(self, slot: int, batch: int) -> Any:
        binding = self._session.io_binding()
        shape = self._interface.cache_shape(batch, self._max_len)
        dtype = np.dtype(self._interface.cache_dtype).type
        for plane, (past, present) in enumerate(self._interface.cache_names):
            pointer = self._kv.pointer(plane, slot)
            binding.bind_input(past, "cpu", 0, dtype, shape, pointer)
            binding.bind_output(present, "cpu", 0, dtype, shape, pointer)
        return binding
