"""What a decode step is given and gives back: pinned memory of the host, twice, and of the device, once.

The host fills one half for the next step while the device may still read the other half for this one.
On the device one is enough: its reads and writes come one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from serve_app.generation.backends.base import Choice
from serve_app.generation.backends.tensorrt.device import ALIGNMENT, Device, Stream
from serve_app.generation.backends.tensorrt.device_sampling import Draws

__all__ = ["DEPTH", "StepStaging"]

DEPTH = 2

_STARTS, _GIVEN, _FRESH, _TOP_K = range(4)
_DRAWS = 8
_WIDTH = ALIGNMENT // 8


class StepStaging:
    """Buffers of decode steps over up to `slots` sequences.

    Attributes:
        starts: tokens that each slot holds before the step, int64 [slots], on the device.
        given: newest tokens, as far as the host knows them, int64 [slots], on the device.
        fresh: 1 where the host does, int64 [slots], on the device.
        chosen: what the step chooses, int64 [slots], on the device.
    """

    def __init__(self, device: Device, stream: Stream, *, slots: int, vocab_size: int) -> None:
        width = -(-slots // _WIDTH) * _WIDTH
        self._stream = stream
        self._integers = device.zeros((4, width), torch.int64)
        self._floats = device.zeros((_DRAWS, width), torch.float64)
        self.starts = self._integers[_STARTS]
        self.given = self._integers[_GIVEN]
        self.fresh = self._integers[_FRESH]
        self.chosen = device.zeros((slots,), torch.int64)
        self._host_integers = device.pinned((DEPTH, 4, width), torch.int64)
        self._host_floats = device.pinned((DEPTH, _DRAWS, width), torch.float64)
        self._host_chosen = device.pinned((DEPTH, slots), torch.int64)
        # Rows that the host chooses for are never in flight with others.
        self._host_logits = device.pinned((slots, vocab_size), torch.float32)

    def send(
        self,
        half: int,
        tokens: Sequence[int],
        fresh: Sequence[bool],
        starts: Sequence[int],
        pad: int,
    ) -> None:
        """Enqueue the copy of what the model is to compute.

        Args:
            half: 0 or 1.
            tokens: newest tokens, [n].
            fresh: where these are known, [n].
            starts: tokens in the slots before them, [n].
            pad: where rows behind these write.
        """
        host, batch = self._host_integers[half].numpy(), len(tokens)
        host[_STARTS, :batch] = starts
        host[_STARTS, batch:] = pad
        host[_GIVEN, :batch] = tokens
        host[_GIVEN, batch:] = 0
        host[_FRESH, :batch] = fresh
        host[_FRESH, batch:] = 1
        self._stream.copy_to_device(self._integers, self._host_integers[half])

    def draws(self, half: int, choices: Sequence[Choice]) -> Draws:
        """Enqueue the copy of how tokens are to be chosen; call it before `send`."""
        host = self._host_floats[half].numpy()
        top_k = self._host_integers[half, _TOP_K].numpy()
        for row, choice in enumerate(choices):
            sampler, params = choice.sampler, choice.sampler.params
            host[:, row] = (
                0.0 if sampler.greedy else params.temperature,
                params.top_p,
                params.min_p,
                params.repetition_penalty,
                params.frequency_penalty,
                params.presence_penalty,
                0.0 if sampler.greedy else sampler.uniform(choice.ahead),
                sampler.position + choice.ahead < params.min_tokens,
            )
            top_k[row] = params.top_k
        self._stream.copy_to_device(self._floats, self._host_floats[half])
        random = [choice.sampler.params for choice in choices if not choice.sampler.greedy]
        return Draws(
            floats=self._floats,
            top_k=self._integers[_TOP_K],
            edited=any(choice.sampler.edits_logits for choice in choices),
            truncated=any(params.top_k or params.top_p < 1 for params in random),
            drawn=bool(random),
        )

    def fetch_tokens(self, half: int) -> None:
        """Enqueue the copy of what was chosen to the host."""
        self._stream.copy_to_host(self._host_chosen[half], self.chosen)

    def fetch_logits(self, logits: torch.Tensor, rows: Sequence[int]) -> None:
        """Enqueue the copy of some rows of logits to the host."""
        for place, row in enumerate(rows):
            self._stream.copy_to_host(self._host_logits[place], logits[row])

    def tokens(self, half: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return what was chosen, once it is here."""
        return self._host_chosen[half, :count].numpy().copy()

    def logits(self, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Return the rows of logits that were fetched, once they are here."""
        return self._host_logits[:count].numpy()
