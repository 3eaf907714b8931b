"""Run a decoder graph by hand, with its K/V cache bound by pointer as an engine does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from serve_app.kernels import library
from serve_app.models.decoder_interface import (
    GRAPH_FILE,
    INPUT_IDS,
    KEY_TILE,
    LOGIT_ROWS,
    LOGITS,
    POSITIONS,
    SEQLENS_K,
    SLOTS,
    TOTAL_SEQUENCE_LENGTH,
    WRITE_INDICES,
    DecoderInterface,
    Form,
)


def open_session(folder: Path, form: Form = "cpu") -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    # Threads that spin between runs would take the cores from the torch model compared against.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if form == "native":
        library.register(options, threads=2)
    return ort.InferenceSession(
        str(folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"]
    )


class DecoderRun:
    """A session and a cache of `slots` sequences of up to `max_len` tokens each.

    Attributes:
        cache: by name of the past, [slots, kv_heads, max_len, head_dim]; filled with a value that
            would show in the logits if anything read what nobody had written.
        lengths: tokens in each slot.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        interface: DecoderInterface,
        *,
        slots: int,
        max_len: int,
    ) -> None:
        self._session = session
        self._names = interface.cache_names
        self._form = interface.form
        self._native = interface.form == "native"
        shape = interface.cache_shape(slots, interface.cache_length or max_len)
        self.cache = {past: np.full(shape, 1e4, interface.cache_dtype) for past, _ in self._names}
        self.lengths = np.zeros(slots, np.int64)

    def step(
        self, tokens: Sequence[Sequence[int]], *, slot: int = 0, rows: Sequence[int] | None = None
    ) -> np.ndarray:
        """Run new tokens [batch, sequence] of the slots from `slot` on.

        Args:
            tokens: the new tokens of each sequence.
            slot: the first sequence's slot.
            rows: rows of the flattened positions whose logits are wanted; None for all.

        Returns:
            Logits [rows, vocab_size].
        """
        ids = np.array(tokens, np.int64)
        used = slice(slot, slot + len(ids))
        starts = self.lengths[used].copy()
        self.lengths[used] += ids.shape[1]
        binding = self._session.io_binding()
        wanted = np.arange(ids.size) if rows is None else np.array(rows, np.int64)
        binding.bind_cpu_input(LOGIT_ROWS, wanted)
        if self._native:
            places = np.arange(ids.shape[1]) + starts[:, None]
            binding.bind_cpu_input(INPUT_IDS, ids.ravel())
            slots = np.repeat(np.arange(len(self.lengths))[used], ids.shape[1])
            binding.bind_cpu_input(SLOTS, slots.astype(np.int32))
            binding.bind_cpu_input(POSITIONS, places.ravel().astype(np.int32))
        elif self._form == "standard":
            binding.bind_cpu_input(INPUT_IDS, ids)
            binding.bind_cpu_input(WRITE_INDICES, starts)
        else:
            binding.bind_cpu_input(INPUT_IDS, ids)
            binding.bind_cpu_input(SEQLENS_K, (self.lengths[used] - 1).astype(np.int32))
            total = np.array(self.lengths[used].max(), np.int32)
            binding.bind_cpu_input(TOTAL_SEQUENCE_LENGTH, total)
        for past, present in self._names:
            buffer = self.cache[past] if self._native else self.cache[past][used]
            place = ("cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
            binding.bind_input(past, *place)
            if not self._native:
                binding.bind_output(present, *place)
        binding.bind_output(LOGITS, "cpu")
        self._session.run_with_iobinding(binding)
        logits: np.ndarray = binding.get_outputs()[-1].numpy()
        return logits

    def by_position(self, past: str) -> np.ndarray:
        """Return a copy of a cache with its positions in a row, which native keys are not."""
        cache = self.cache[past]
        if not (self._native and past.endswith(".key")):
            return cache.copy()
        slots, heads, length, dim = cache.shape
        tiles = cache.reshape(slots, heads, length // KEY_TILE, dim, KEY_TILE)
        return tiles.swapaxes(3, 4).reshape(cache.shape)
