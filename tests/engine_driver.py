"""An engine over the simulated backend, and a subscriber that listens to it."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serve_app.generation.backends.base import Backend
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.engine import Engine, EngineConfig
from serve_app.messages.generation import (
    Finished,
    Frame,
    GenerateRequest,
    SamplingParams,
    TokenLogprobs,
)

_numbers = itertools.count()


def config(**changes: Any) -> EngineConfig:
    """Limits of a small engine, with some of them changed."""
    limits: dict[str, Any] = {
        "slots": 4,
        "max_len": 128,
        "max_cached_tokens": 512,
        "prefill_chunk": 16,
        "max_queued": 64,
        "prefix_cache_bytes": 8 * 8 * 32,
        "prefix_block": 8,
    }
    return EngineConfig(**(limits | changes))


def request(
    prompt: tuple[int, ...] = (1, 2, 3),
    *,
    max_tokens: int = 8,
    output: tuple[int, ...] = (),
    subscriber: str = "ingress",
    priority: int = 0,
    timeout_s: float | None = None,
    **sampling: Any,
) -> GenerateRequest:
    """Ask for a greedy stream with a number of its own."""
    number = next(_numbers)
    chosen: dict[str, Any] = {"seed": 1, "temperature": 0.0} | sampling
    return GenerateRequest(
        request_id=f"request-{number}",
        subscriber=subscriber,
        stream=number,
        prompt=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, **chosen),
        output=output,
        priority=priority,
        timeout_s=timeout_s,
    )


class Listener:
    """Takes what an engine delivers and lets a test wait for it.

    Attributes:
        deliveries: every call's frames by subscriber, in order.
        tokens: by stream.
        logprobs: by stream.
        finished: by stream; a stream that ends twice fails the test.
    """

    def __init__(self) -> None:
        self.deliveries: list[dict[str, Frame]] = []
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.logprobs: defaultdict[int, list[TokenLogprobs | None]] = defaultdict(list)
        self.finished: dict[int, Finished] = {}
        self._changed = threading.Condition()

    def deliver(self, frames: Mapping[str, Frame]) -> None:
        with self._changed:
            self.deliveries.append(dict(frames))
            for frame in frames.values():
                logprobs = frame.logprobs or (None,) * len(frame.tokens)
                for stream, token, entry in zip(frame.streams, frame.tokens, logprobs, strict=True):
                    assert stream not in self.finished
                    self.tokens[stream].append(token)
                    self.logprobs[stream].append(entry)
                for finished in frame.finished:
                    assert finished.stream not in self.finished
                    self.finished[finished.stream] = finished
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                assert time.monotonic() < deadline, "nothing came in time"
                # The engine forgets a stream a moment after its end is delivered, and tells nobody.
                self._changed.wait(0.02)

    def end_of(self, asked: GenerateRequest, timeout_s: float = 20.0) -> Finished:
        self.wait_for(lambda: asked.stream in self.finished, timeout_s)
        return self.finished[asked.stream]

    def reply(self, asked: GenerateRequest) -> list[int]:
        """Wait for the end of a stream and return its tokens."""
        self.end_of(asked)
        return self.tokens[asked.stream]


class GatedBackend(SimulatedBackend):
    """A simulated backend whose steps wait to be let through where anybody decodes, one permit a step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.permits = threading.Semaphore(0)
        self.open = False
        self.waiting = threading.Event()

    def step(self, prompts: Any, tokens: Any, lengths: Any, drafts: Any = ()) -> Any:
        if len(tokens) and not self.open:
            self.waiting.set()
            self.permits.acquire()
            self.waiting.clear()
        return super().step(prompts, tokens, lengths, drafts)

    def let_go(self) -> None:
        """Let every step through from now on."""
        self.open = True
        self.permits.release(1000)


@contextmanager
def running(
    backend: Backend | None = None, *, eos: tuple[int, ...] = (), **limits: Any
) -> Iterator[tuple[Engine, Listener]]:
    """Start an engine, and stop it at the end."""
    backend = SimulatedBackend() if backend is None else backend
    listener = Listener()
    engine = Engine(backend, config(**limits), eos_token_ids=eos, deliver=listener.deliver)
    engine.start()
    try:
        yield engine, listener
    finally:
        if isinstance(backend, GatedBackend):
            backend.let_go()
        engine.stop(drain_s=0.0)


def alone(asked: GenerateRequest, *, eos: tuple[int, ...] = (), **limits: Any) -> list[int]:
    """Return the tokens of a request that has an engine, without prefix cache, to itself."""
    with running(eos=eos, prefix_cache_bytes=0, slots=1, **limits) as (engine, listener):
        engine.submit(asked)
        return listener.reply(asked)
