"""The logits of every position of a text, where an engine only wants those behind its last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import ModelError
from serve_app.generation.backends.session import bind_input, bind_output, open_session
from serve_app.models.decoder_interface import (
    INPUT_IDS,
    KEY_TILE,
    LOGIT_ROWS,
    LOGITS,
    POSITIONS,
    SEQLENS_K,
    SLOTS,
    TOTAL_SEQUENCE_LENGTH,
    WRITE_INDICES,
)
from serve_app.models.store import PreparedModel

__all__ = ["WindowDecoder"]


class WindowDecoder:
    """Runs a prepared model over windows of tokens, each from the beginning and in one go.

    Args:
        model: the model, in any form that runs on a CPU.
        width: tokens of a window.
        threads: threads of the runtime.

    Raises:
        ModelError: the graph can't be loaded, or has a smaller context.
    """

    def __init__(self, model: PreparedModel, *, width: int, threads: int) -> None:
        interface = model.manifest.interface
        if width > interface.context_length:
            msg = (
                f"A window of {width} tokens is longer than the context of {model.path.name}, "
                f"{interface.context_length} tokens."
            )
            raise ModelError(msg)
        native = interface.form == "native"
        self._session = open_session(model.path, interface, threads=threads)
        self._width = width
        self._binding = self._session.io_binding()
        self._tokens = np.zeros(width, np.int64)
        self._inputs: dict[str, NDArray[Any]] = {LOGIT_ROWS: np.arange(width, dtype=np.int64)}
        if native:
            self._inputs[INPUT_IDS] = self._tokens
            self._inputs[SLOTS] = np.zeros(width, np.int32)
            self._inputs[POSITIONS] = np.arange(width, dtype=np.int32)
        elif interface.form == "standard":
            self._inputs[INPUT_IDS] = self._tokens.reshape(1, width)
            self._inputs[WRITE_INDICES] = np.zeros(1, np.int64)
        else:
            self._inputs[INPUT_IDS] = self._tokens.reshape(1, width)
            self._inputs[SEQLENS_K] = np.array([width - 1], np.int32)
            self._inputs[TOTAL_SEQUENCE_LENGTH] = np.array(width, np.int32)
        for name, value in self._inputs.items():
            bind_input(self._binding, name, value)
        # The graph writes a past that it never reads here: every window begins at nothing.
        whole = interface.cache_length or -(-width // KEY_TILE) * KEY_TILE
        shape = interface.cache_shape(1, whole)
        self._cache = [np.zeros(shape, interface.cache_dtype) for _ in interface.cache_names]
        for (past, present), buffer in zip(interface.cache_names, self._cache, strict=True):
            bind_input(self._binding, past, buffer)
            if not native:
                bind_output(self._binding, present, buffer)
        self._logits = np.zeros((width, interface.vocab_size), np.float32)
        bind_output(self._binding, LOGITS, self._logits)

    def logits(self, window: Sequence[int]) -> NDArray[np.float32]:
        """Compute a window.

        Args:
            window: as many tokens as a window has.

        Returns:
            [width, vocab]: row i is about the token behind the window's token i. It is overwritten
            by the next call.
        """
        if len(window) != self._width:
            msg = f"a window has {self._width} tokens, not {len(window)}"
            raise ValueError(msg)
        self._tokens[:] = window
        self._session.run_with_iobinding(self._binding)
        return self._logits
