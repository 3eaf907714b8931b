"""The decoder on TensorRT: K/V, logits and the choice of tokens stay on the GPU, and steps overlap."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.errors import ConfigError, GeneratorLost
from serve_app.generation.backends.base import Choice, Chosen, Piece
from serve_app.generation.backends.tensorrt.decoder_contexts import (
    DECODE,
    DecoderContexts,
    activation_bytes,
)
from serve_app.generation.backends.tensorrt.device import Device, DeviceEngine, Event
from serve_app.generation.backends.tensorrt.device_kv import DeviceKV
from serve_app.generation.backends.tensorrt.device_sampling import BROKEN, OVERFLOWED, choose
from serve_app.generation.backends.tensorrt.memory_plan import MemoryPlan
from serve_app.generation.backends.tensorrt.slot_choices import SlotChoices
from serve_app.generation.backends.tensorrt.step_staging import DEPTH, StepStaging
from serve_app.generation.config import EngineConfig
from serve_app.generation.sampling import Sampler
from serve_app.models.decoder_interface import INPUT_IDS, DecoderInterface

__all__ = ["TensorRTBackend"]

logger = logging.getLogger(__name__)

_GIB = 1 << 30

_LOST = (
    "The GPU failed while computing this reply ({error}); try again, and the reply is computed by another "
    "replica. See `nvidia-smi` and the kernel's log on that node if it stays so."
)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    done: Event
    half: int
    batch: int
    unsampled: tuple[int, ...]


class TensorRTBackend:
    """Runs an engine that was built from the standard form of a decoder, on one stream of one device.

    It is a `SamplingBackend`. Rows of logits leave the device only for requests that want more than a
    token, such as log probabilities.

    Args:
        device: the GPU.
        engine: built with the profiles *prefill* and *decode*, in this order.
        interface: of the graph that it was built from.
        weights_bytes: of weights that may stay on the host, how many are to be on the device; None for
            as many as slots leave room for. Without meaning unless the engine was built so.
        share: of the device's memory, how much is for this backend; the rest is for other processes.

    Attributes:
        device: as given.
        streamed_bytes: of weights, how many every step reads from the host; known once allocated.
    """

    def __init__(
        self,
        device: Device,
        engine: DeviceEngine,
        interface: DecoderInterface,
        *,
        weights_bytes: int | None = None,
        share: float = 1.0,
    ) -> None:
        self.device = device
        self.streamed_bytes = 0
        self.vocab_size = interface.vocab_size
        self.context_length = interface.context_length
        self.token_bytes = interface.token_bytes
        self.draft_rows = 0  # the decode profile takes one token of a slot
        self.depth = DEPTH
        self._interface = interface
        self._engine = engine
        self._weights_bytes = weights_bytes
        self._share = share
        self._stream = device.stream()
        self._in_flight: deque[_Step] = deque()
        self._half = 0
        if engine.streamable_weights_size:
            # So that what is free is known, and what streaming takes is counted in full.
            with _losses():
                engine.set_weight_streaming_budget_v2(0)

    def fitted(self, config: EngineConfig) -> EngineConfig:
        """Return limits that the device has memory for: these, or the same with fewer slots.

        Raises:
            ConfigError: there is no room for one slot.
        """
        blocks = config.prefix_cache_bytes // (self.token_bytes * config.prefix_block)
        plan = self._plan(blocks, config.prefix_block)
        slots = plan.slots(min(config.slots, self._most_slots))
        if slots == config.slots:
            return config
        logger.warning(
            "the GPU and its engine have room for %d slots, and generator.slots is %d",
            slots,
            config.slots,
        )
        return dataclasses.replace(config, slots=slots)

    def allocate(self, *, slots: int, max_len: int, blocks: int, block_tokens: int) -> None:
        """Take the memory, create contexts, and capture a decode step of each batch size.

        Raises:
            ConfigError: it doesn't fit the device or the engine.
            GeneratorLost: the device failed.
        """
        if max_len > self.context_length:
            msg = f"The engine's slots have {self.context_length} tokens; lower generator.max_len."
            raise ConfigError(msg, param="generator.max_len")
        plan = self._plan(blocks, block_tokens)
        room = plan.slots(min(slots, self._most_slots))
        if room < slots:
            msg = (
                f"The GPU and its engine have room for {room} slots, and generator.slots is {slots}; "
                "lower it, or build an engine for more slots with `parley model build`."
            )
            raise ConfigError(msg, param="generator.slots")
        device, stream = self.device, self._stream
        with _losses():
            self._keep_weights(plan.resident(slots))
            self._kv = DeviceKV(
                device,
                stream,
                self._interface,
                slots=slots,
                blocks=blocks,
                block_tokens=block_tokens,
            )
            self._staging = StepStaging(device, stream, slots=slots, vocab_size=self.vocab_size)
            self._choices = SlotChoices(device, stream, slots=slots, vocab_size=self.vocab_size)
            self._contexts = DecoderContexts(
                device, self._engine, stream, self._interface, self._kv, slots=slots
            )
            self._contexts.capture(self._staging.starts, self._gather_tokens)

    def step(
        self,
        prompts: Sequence[Piece],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int32],
        drafts: Sequence[Piece] = (),  # noqa: ARG002  (there are none)
    ) -> NDArray[np.float32]:
        """Compute a step and wait for its logits; see `Backend.step`."""
        batch = len(tokens)
        with _losses():
            self._prefill(prompts)
            if batch:
                self._decode(tokens.tolist(), [True] * batch, lengths.tolist())
                self._staging.fetch_logits(self._contexts.logits, range(batch))
            self._stream.synchronize()
        self._half = 1 - self._half
        return self._staging.logits(batch)

    def samples(self, sampler: Sampler) -> bool:
        """Tell whether a sampler's tokens are chosen on the device: all but those with log probabilities."""
        return sampler.params.logprobs is None

    def enqueue(self, prompts: Sequence[Piece], choices: Sequence[Choice]) -> None:
        """Begin a step; see `SamplingBackend.enqueue`."""
        if len(self._in_flight) == DEPTH:
            msg = f"{DEPTH} steps are in flight; collect one first"
            raise ValueError(msg)
        half, batch = self._half, len(choices)
        unsampled = tuple(
            row for row, choice in enumerate(choices) if not self.samples(choice.sampler)
        )
        with _losses():
            self._prefill(prompts)
            if batch:
                for slot, choice in enumerate(choices):
                    if not choice.ahead:
                        self._choices.seat(slot, choice.sampler)
                draws = self._staging.draws(half, choices)
                self._decode(
                    [choice.token for choice in choices],
                    [choice.ahead == 0 for choice in choices],
                    [choice.length for choice in choices],
                )
                logits = self._contexts.logits[:batch]
                chosen, state = self._staging.chosen[:batch], self._choices.state
                self._staging.fetch_logits(logits, unsampled)
                self._stream.launch(lambda: _write(chosen, choose(logits, state, draws)))
                self._staging.fetch_tokens(half)
            self._in_flight.append(_Step(self._stream.record(), half, batch, unsampled))
        self._half = 1 - half

    def collect(self) -> Chosen:
        """Wait for the oldest step in flight; see `SamplingBackend.collect`."""
        step = self._in_flight.popleft()
        with _losses():
            step.done.wait()
        tokens = self._staging.tokens(step.half, step.batch)
        return Chosen(
            tokens=tokens,
            broken=frozenset(np.flatnonzero(tokens == BROKEN).tolist()) - {*step.unsampled},
            overflowed=frozenset(np.flatnonzero(tokens == OVERFLOWED).tolist()) - {*step.unsampled},
            unsampled=step.unsampled,
            logits=self._staging.logits(len(step.unsampled)),
        )

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot, and how its tokens are chosen, over another slot."""
        with _losses():
            self._kv.move(source, target, length)
            self._choices.move(source, target)

    def vacate(self, slot: int, length: int) -> None:  # noqa: ARG002 - the memory stays taken
        """Forget how a slot's tokens were chosen."""
        self._choices.vacate(slot)

    def save(self, slot: int, start: int, block: int) -> None:
        """Copy a piece of a slot into a block."""
        with _losses():
            self._kv.save(slot, start, block)

    def load(self, blocks: Sequence[int], slot: int) -> None:
        """Copy blocks to the start of a slot."""
        with _losses():
            self._kv.load(blocks, slot)

    def make_room(self, lengths: Sequence[int], most: int) -> int:  # noqa: ARG002
        """Return all blocks: their memory is taken."""
        return self._kv.blocks

    def drop(self, block: int) -> None:
        """Do nothing: the memory stays taken."""

    @property
    def _most_slots(self) -> int:
        return self._engine.get_tensor_profile_shape(INPUT_IDS, DECODE)[2][0]

    def _plan(self, blocks: int, block_tokens: int) -> MemoryPlan:
        return MemoryPlan.of(
            self._interface,
            blocks=blocks,
            block_tokens=block_tokens,
            activations=activation_bytes(self._engine),
            free=self._room(),
            streamable=self._engine.streamable_weights_size,
            kept=self._weights_bytes,
            share=self._share,
        )

    def _room(self) -> int:
        """Return the bytes that this backend may take beside the weights that are loaded.

        Whoever has a share may not count on what is free: another one, which shares the device, may not
        have started yet, or be starting at the same time.
        """
        free = self.device.free_bytes()
        if self._share >= 1:
            return free
        loaded = self._engine.weights_bytes - self._engine.streamable_weights_size
        return max(0, min(free, int(self._share * self.device.total_bytes()) - loaded))

    def _keep_weights(self, size: int) -> None:
        streamable = self._engine.streamable_weights_size
        if not streamable:
            return
        self._engine.set_weight_streaming_budget_v2(size)
        self.streamed_bytes = streamable - size
        if self.streamed_bytes:
            logger.warning(
                "%.2f of %.2f GiB of weights are on the GPU; every step reads the rest from the host",
                size / _GIB,
                streamable / _GIB,
            )

    def _prefill(self, prompts: Sequence[Piece]) -> None:
        for piece in prompts:
            self._contexts.prefill(piece.slot, piece.start, torch.from_numpy(piece.tokens))

    def _decode(self, tokens: Sequence[int], fresh: Sequence[bool], lengths: Sequence[int]) -> None:
        # Rows that only fill a batch up may be in the slot of a prompt that is half computed. They
        # write to its last place, which no prompt reaches.
        self._staging.send(self._half, tokens, fresh, lengths, pad=self.context_length - 1)
        self._contexts.decode(len(tokens))

    def _gather_tokens(self, batch: int) -> None:
        staging = self._staging
        tokens = torch.where(
            staging.fresh[:batch] > 0, staging.given[:batch], self._choices.state.newest[:batch]
        )
        self._contexts.tokens[:batch] = tokens


def _write(target: torch.Tensor, values: torch.Tensor) -> None:
    target.copy_(values)


@contextmanager
def _losses() -> Iterator[None]:
    """Turn what torch and TensorRT raise into the loss of this generator."""
    try:
        yield
    except RuntimeError as error:
        raise GeneratorLost(_LOST.format(error=str(error).partition("\n")[0])) from error
