"""The engine's ways to run: one context for pieces of prompts, and one with a captured graph per batch size."""

from __future__ import annotations

from collections.abc import Callable

import torch

from serve_app.generation.backends.tensorrt.buckets import batch_buckets, bucket_of
from serve_app.generation.backends.tensorrt.device import (
    ALIGNMENT,
    Device,
    DeviceEngine,
    ExecutionContext,
    Graph,
    Stream,
)
from serve_app.generation.backends.tensorrt.device_kv import DeviceKV
from serve_app.models.decoder_interface import (
    INPUT_IDS,
    LOGIT_ROWS,
    LOGITS,
    WRITE_INDICES,
    DecoderInterface,
)

__all__ = ["DECODE", "PREFILL", "DecoderContexts", "activation_bytes"]

PREFILL, DECODE = 0, 1
"""Numbers of the profiles, see `decoder_profiles`."""

# Of a piece's buffer: where it starts, the row whose logits are wanted, and its tokens, each aligned.
_START, _ROW, _TOKENS = 0, ALIGNMENT // 8, 2 * ALIGNMENT // 8


def activation_bytes(engine: DeviceEngine) -> int:
    """Return the memory that all contexts work in, by turns."""
    return max(engine.activation_bytes(PREFILL), engine.activation_bytes(DECODE))


class DecoderContexts:
    """Runs the decoder over slots in a device's memory.

    All contexts share the engine's weights and one memory to work in, since they run on one stream.
    Each batch size has a context of its own, because a captured graph is only valid for as long as
    nobody changes the shapes of the context that it was captured from.

    Args:
        device: where it runs.
        engine: built with the profiles *prefill* and *decode*.
        stream: what everything is enqueued on.
        interface: of the engine's graph.
        kv: the slots.
        slots: how many there are.

    Attributes:
        logits: of the last decode step, float32 [slots, vocab], on the device.
        tokens: what a decode step computes, int64 [slots], on the device.
        buckets: batch sizes that have a graph.
    """

    def __init__(
        self,
        device: Device,
        engine: DeviceEngine,
        stream: Stream,
        interface: DecoderInterface,
        kv: DeviceKV,
        *,
        slots: int,
    ) -> None:
        self._device = device
        self._engine = engine
        self._stream = stream
        self._interface = interface
        self._kv = kv
        self._activations = device.zeros((activation_bytes(engine),), torch.uint8)
        self.tokens = device.zeros((slots,), torch.int64)
        self.logits = device.zeros((slots, interface.vocab_size), torch.float32)
        self.buckets = batch_buckets(slots)
        self._rows = device.zeros((slots,), torch.int64)
        rows = self._rows
        stream.launch(lambda: _number(rows))
        self._graphs: dict[int, Graph] = {}
        most = engine.get_tensor_profile_shape(INPUT_IDS, PREFILL)[2]
        self._most_tokens = most[1]
        self._piece = device.zeros((_TOKENS + self._most_tokens,), torch.int64)
        self._ignored_logits = device.zeros((1, interface.vocab_size), torch.float32)
        self._prefill = self._context(PREFILL, slot=0, batch=1)
        self._prefill.set_input_shape(WRITE_INDICES, (1,))
        self._prefill.set_input_shape(LOGIT_ROWS, (1,))
        self._prefill.set_tensor_address(WRITE_INDICES, self._piece[_START:].data_ptr())
        self._prefill.set_tensor_address(LOGIT_ROWS, self._piece[_ROW:].data_ptr())
        self._prefill.set_tensor_address(INPUT_IDS, self._piece[_TOKENS:].data_ptr())
        self._prefill.set_tensor_address(LOGITS, self._ignored_logits.data_ptr())

    def capture(self, starts: torch.Tensor, gather_tokens: Callable[[int], None]) -> None:
        """Capture a decode step of every batch size; each is done once, over what the slots hold.

        Args:
            starts: tokens in the slots before a step, int64 [slots], on the device.
            gather_tokens: writes the first so many of `tokens`; torch operations alone.
        """
        for batch in self.buckets:
            context = self._context(DECODE, slot=0, batch=batch)
            context.set_input_shape(INPUT_IDS, (batch, 1))
            context.set_input_shape(WRITE_INDICES, (batch,))
            context.set_input_shape(LOGIT_ROWS, (batch,))
            context.set_tensor_address(INPUT_IDS, self.tokens.data_ptr())
            context.set_tensor_address(WRITE_INDICES, starts.data_ptr())
            context.set_tensor_address(LOGIT_ROWS, self._rows.data_ptr())
            context.set_tensor_address(LOGITS, self.logits.data_ptr())
            self._graphs[batch] = self._stream.capture(
                self._decode_of(context, batch, gather_tokens)
            )
        self._stream.synchronize()

    def prefill(self, slot: int, start: int, tokens: torch.Tensor) -> None:
        """Enqueue tokens of one sequence.

        Args:
            slot: where their K/V goes.
            start: tokens that the slot holds before them.
            tokens: int64 [n], on the host.
        """
        for past, address in self._cache_addresses(slot):
            self._prefill.set_tensor_address(past, address)
        for first, size in _cuts(len(tokens), self._most_tokens):
            host = self._device.pinned((_TOKENS + size,), torch.int64)
            host[_START] = start + first
            host[_ROW] = size - 1
            host[_TOKENS:] = tokens[first : first + size]
            self._stream.copy_to_device(self._piece[: _TOKENS + size], host)
            self._prefill.set_input_shape(INPUT_IDS, (1, size))
            self._prefill.execute_async_v3()

    def decode(self, batch: int) -> None:
        """Enqueue a step of the first slots, and of those behind them that fill up the graph's batch."""
        self._graphs[bucket_of(self.buckets, batch)].replay()

    def _decode_of(
        self, context: ExecutionContext, batch: int, gather_tokens: Callable[[int], None]
    ) -> Callable[[], None]:
        def work() -> None:
            self._stream.launch(lambda: gather_tokens(batch))
            context.execute_async_v3()

        return work

    def _context(self, profile: int, *, slot: int, batch: int) -> ExecutionContext:
        context = self._engine.create_execution_context(profile, self._activations, self._stream)
        shape = self._interface.cache_shape(batch, self._interface.context_length)
        for past, _ in self._interface.cache_names:
            context.set_input_shape(past, shape)
        for name, address in self._cache_addresses(slot):
            context.set_tensor_address(name, address)
        return context

    def _cache_addresses(self, slot: int) -> list[tuple[str, int]]:
        """Return where past and present of every plane lie: in the same place."""
        return [
            (name, self._kv.address(plane, slot))
            for plane, names in enumerate(self._interface.cache_names)
            for name in names
        ]


def _number(rows: torch.Tensor) -> None:
    rows.copy_(torch.arange(len(rows), device=rows.device))


def _cuts(count: int, most: int) -> list[tuple[int, int]]:
    """Cut tokens into (first, size), as large as may be, but with no single one left over."""
    cuts = []
    first = 0
    while first < count:
        size = min(most, count - first)
        if count - first - size == 1 and size > 2:
            size -= 1
        cuts.append((first, size))
        first += size
    return cuts
