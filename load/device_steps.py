"""Times steps on a device: as the engine delivers their tokens, and of the runtime alone."""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import ConfigError
from serve_app.generation.backends.base import Choice, Piece, SamplingBackend
from serve_app.generation.engine import Engine, EngineConfig
from serve_app.generation.sampling import Sampler
from serve_app.messages.generation import Frame, GenerateRequest, SamplingParams

__all__ = ["EngineSteps", "MeasuredSteps", "prefill_s", "runtime_s"]

_SUBSCRIBER = "load"
_CHECK_S = 5.0
_STALL_S = 60.0


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """Decode steps in which the same streams took part.

    Attributes:
        step_s: median seconds between the tokens of one step and those of the next.
        past: tokens of K/V that each stream found in its slot, on average.
    """

    step_s: float
    past: float


@dataclass(frozen=True, slots=True)
class _Arrival:
    at: float
    frame: Frame


class EngineSteps:
    """An engine whose streams all decode together; a context manager around the engine's thread.

    Args:
        backend: not allocated yet; it stays allocated afterwards.
        config: the engine's limits.
    """

    def __init__(self, backend: SamplingBackend, config: EngineConfig) -> None:
        self._arrivals: queue.SimpleQueue[_Arrival] = queue.SimpleQueue()
        self._vocab_size = backend.vocab_size
        self._depth = backend.depth
        self._engine = Engine(backend, config, eos_token_ids=(), deliver=self._deliver)
        self._number = 0

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.stop(drain_s=0.0)

    @property
    def slots(self) -> int:
        """How many sequences the engine has room for."""
        return self._engine.config.slots

    def measure(
        self, batch: int, *, past: int, steps: int, temperature: float = 0.0
    ) -> MeasuredSteps:
        """Have some streams decode together for some steps, then cancel them.

        Args:
            batch: how many streams.
            past: tokens of each one's prompt.
            steps: how many steps are measured.
            temperature: of sampling.

        Raises:
            ConfigError: a slot was full before that many steps had all streams in them.
            GeneratorLost: the engine has died.
        """
        asked = [self._ask(past, slot, temperature) for slot in range(batch)]
        for request in asked:
            self._engine.submit(request)
        counts = {request.stream: 0 for request in asked}
        measured: list[_Arrival] = []
        pasts: list[float] = []
        # A step that was begun beside the last prompt is none of decoding alone.
        skipped = 0
        while len(measured) <= steps:
            arrival = self._next()
            if arrival.frame.finished:
                msg = (
                    f"A slot of {self._engine.config.max_len} tokens was full before {batch} streams had "
                    f"{steps} steps together: lower --past or --steps, or raise generator.max_len."
                )
                raise ConfigError(msg, param="--past")
            for stream in arrival.frame.streams:
                counts[stream] += 1
            if len(arrival.frame.tokens) < batch:
                continue
            if skipped <= self._depth:
                skipped += 1
                continue
            if measured:  # the first one only begins the time of the second
                # The k-th token is computed over the prompt, but for its last token, and k - 1 more.
                pasts.append(past - 2 + statistics.fmean(counts.values()))
            measured.append(arrival)
        for request in asked:
            self._engine.cancel(request.request_id)
        ended = 0
        while ended < batch:
            ended += len(self._next().frame.finished)
        return MeasuredSteps(_median_gap([each.at for each in measured]), statistics.fmean(pasts))

    def _ask(self, past: int, slot: int, temperature: float) -> GenerateRequest:
        self._number += 1
        return GenerateRequest(
            request_id=f"{_SUBSCRIBER}-{self._number}",
            subscriber=_SUBSCRIBER,
            stream=self._number,
            prompt=tuple(_prompt(past, self._number, self._vocab_size).tolist()),
            sampling=SamplingParams(
                max_tokens=self._engine.config.max_len,
                seed=slot,
                temperature=temperature,
                ignore_eos=True,
            ),
        )

    def _deliver(self, frames: Mapping[str, Frame]) -> None:
        self._arrivals.put(_Arrival(time.perf_counter(), frames[_SUBSCRIBER]))

    def _next(self) -> _Arrival:
        while True:
            try:
                return self._arrivals.get(timeout=_CHECK_S)
            except queue.Empty:
                self._engine.check(_STALL_S)


def runtime_s(
    backend: SamplingBackend, batch: int, *, past: int, steps: int, temperature: float = 0.0
) -> float:
    """Return the median seconds of a decode step with nothing around the backend.

    Args:
        backend: allocated, and nobody else's.
        batch: sequences of a step.
        past: tokens that each slot holds at first.
        steps: how many are measured.
        temperature: of sampling.

    Raises:
        GeneratorLost: the device failed.
    """
    params = SamplingParams(
        max_tokens=past + steps, seed=0, temperature=temperature, ignore_eos=True
    )
    prompts = [_prompt(past + 1, slot, backend.vocab_size) for slot in range(batch)]
    for slot, prompt in enumerate(prompts):
        backend.vacate(slot, 0)
        backend.enqueue([Piece(slot, 0, prompt[:-1])], [])
        backend.collect()
    samplers = [Sampler(params, (), (), (), backend.vocab_size) for _ in prompts]
    newest = [int(prompt[-1]) for prompt in prompts]
    ends: list[float] = []
    begun = 0

    def begin() -> None:
        nonlocal begun
        ahead = begun - len(ends)
        backend.enqueue(
            [],
            [
                Choice(sampler, ahead, token, past + begun)
                for sampler, token in zip(samplers, newest, strict=True)
            ],
        )
        begun += 1

    # Before the first measured step, one to get going.
    for _ in range(backend.depth - 1):
        begin()
    while len(ends) < steps + 1:
        begin()
        newest = backend.collect().tokens.tolist()
        ends.append(time.perf_counter())
        for sampler, token in zip(samplers, newest, strict=True):
            sampler.advance(token)
    for _ in range(backend.depth - 1):
        backend.collect()
    return _median_gap(ends)


def prefill_s(backend: SamplingBackend, tokens: int, *, steps: int) -> float:
    """Return the median seconds that a piece of a prompt takes, at the start of a slot.

    Args:
        backend: allocated, and nobody else's.
        tokens: of the piece.
        steps: how many are measured.

    Raises:
        GeneratorLost: the device failed.
    """
    piece = Piece(0, 0, _prompt(tokens, 0, backend.vocab_size))

    def took() -> Iterator[float]:
        for _ in range(steps + 1):
            began = time.perf_counter()
            backend.enqueue([piece], [])
            backend.collect()
            yield time.perf_counter() - began

    return statistics.median(list(took())[1:])


def _prompt(length: int, seed: int, vocab_size: int) -> NDArray[np.int64]:
    rng = np.random.default_rng([seed, length])
    return rng.integers(0, vocab_size, length, np.int64)


def _median_gap(times: list[float]) -> float:
    return float(np.median(np.diff(times)))
