"""K/V in a device's memory: slots that the engine reads and writes in place, and blocks of prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serve_app.errors import ConfigError
from serve_app.generation.backends.tensorrt.device import ALIGNMENT, Device, Stream
from serve_app.models.decoder_interface import DecoderInterface

__all__ = ["DeviceKV"]


class DeviceKV:
    """Slots [planes, slots, heads, cache length, dim] and blocks [blocks, planes, heads, tokens, dim].

    A *plane* is one layer's keys or one layer's values, as in `KVCache`. Copies are enqueued: they come
    behind what was enqueued before them, and before what follows.

    Args:
        device: whose memory it is.
        stream: what everything is enqueued on.
        interface: of a graph in the standard form.
        slots: sequences.
        blocks: pieces of prefixes.
        block_tokens: tokens of one.

    Raises:
        ConfigError: a slot's size isn't one that TensorRT can be pointed to.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        interface: DecoderInterface,
        *,
        slots: int,
        blocks: int,
        block_tokens: int,
    ) -> None:
        dtype: torch.dtype = getattr(torch, interface.cache_dtype)
        planes = 2 * interface.layers
        shape = interface.cache_shape(slots, interface.context_length)
        # Zeroed, because what nobody has written must at least be finite.
        self._slots = device.zeros((planes, *shape), dtype)
        heads, dim = interface.kv_heads, interface.head_dim
        self._blocks = device.zeros((max(blocks, 1), planes, heads, block_tokens, dim), dtype)
        self.blocks = blocks
        self._block_tokens = block_tokens
        self._stream = stream
        if self._slots.stride(1) * dtype.itemsize % ALIGNMENT:
            msg = (
                f"A slot of {interface.context_length} tokens isn't aligned to {ALIGNMENT} bytes: prepare "
                "the model with a --cache-length that is a multiple of 64."
            )
            raise ConfigError(msg)

    def address(self, plane: int, slot: int) -> int:
        """Return where a plane's slots from `slot` on lie."""
        return self._slots[plane, slot].data_ptr()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot over another slot."""
        slots = self._slots
        copied, written = slots[:, source, :, :length], slots[:, target, :, :length]
        self._stream.launch(lambda: _copy(written, copied))

    def save(self, slot: int, start: int, block: int) -> None:
        """Copy a block's worth of a slot's tokens, from `start` on, into a block."""
        copied = self._slots[:, slot, :, start : start + self._block_tokens]
        written = self._blocks[block]
        self._stream.launch(lambda: _copy(written, copied))

    def load(self, blocks: Sequence[int], slot: int) -> None:
        """Copy blocks, one behind the other, to the start of a slot."""
        size = self._block_tokens
        pairs = [
            (self._slots[:, slot, :, place * size : (place + 1) * size], self._blocks[block])
            for place, block in enumerate(blocks)
        ]

        def copy() -> None:
            for written, copied in pairs:
                written.copy_(copied)

        self._stream.launch(copy)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)
