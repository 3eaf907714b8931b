"""How the sequence in each slot chooses its tokens, as far as that outlasts a step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.generation.backends.tensorrt.device import Device, Stream
from serve_app.generation.backends.tensorrt.device_sampling import UNSEEN, SlotState
from serve_app.generation.sampling import Sampler

__all__ = ["SlotChoices"]


class SlotChoices:
    """Keeps the state of the device and knows whose it is.

    Attributes:
        state: on the device.
    """

    def __init__(self, device: Device, stream: Stream, *, slots: int, vocab_size: int) -> None:
        self.state = SlotState(
            newest=device.zeros((slots,), torch.int64),
            bias=device.zeros((slots, vocab_size), torch.float32),
            counts=device.zeros((slots, vocab_size), torch.int32),
            stops=device.zeros((slots, vocab_size), torch.bool),
        )
        self._device = device
        self._stream = stream
        self._seated: list[Sampler | None] = [None] * slots

    def seat(self, slot: int, sampler: Sampler) -> None:
        """Enqueue what the device must know of a sampler, unless it does."""
        if self._seated[slot] is sampler:
            return
        self._seated[slot] = sampler
        bias, counts, stops = (
            plane[slot] for plane in (self.state.bias, self.state.counts, self.state.stops)
        )

        def clear() -> None:
            bias.zero_()
            counts.fill_(UNSEEN)
            stops.zero_()

        self._stream.launch(clear)
        tokens, values = sampler.bias
        self._add(bias, tokens, values)
        tokens, values = sampler.spoken
        self._add(counts, tokens, values - UNSEEN)
        self._add(stops, sampler.stops, np.ones(len(sampler.stops)))

    def move(self, source: int, target: int) -> None:
        """Enqueue the copy of a slot's state over another slot's."""
        state = self.state
        pairs = [
            (plane[target], plane[source])
            for plane in (state.newest, state.bias, state.counts, state.stops)
        ]

        def copy() -> None:
            for written, copied in pairs:
                written.copy_(copied)

        self._stream.launch(copy)
        self._seated[target] = self._seated[source]

    def vacate(self, slot: int) -> None:
        """Take note that nobody's state is in a slot."""
        self._seated[slot] = None

    def _add(
        self, row: torch.Tensor, tokens: NDArray[np.int64], values: NDArray[np.floating]
    ) -> None:
        """Enqueue the addition of values to some tokens' places in a row, [vocab]."""
        if not len(tokens):
            return
        places = self._device.pinned((len(tokens),), torch.int64)
        added = self._device.pinned((len(tokens),), torch.float32)
        places.numpy()[:] = tokens
        added.numpy()[:] = values

        def add() -> None:
            where = places.to(row.device, non_blocking=True)
            what = added.to(row.device, non_blocking=True).to(row.dtype)
            if row.dtype == torch.bool:
                row.index_fill_(0, where, True)  # noqa: FBT003 - torch takes it by place
            else:
                row.index_add_(0, where, what)

        self._stream.launch(add)
