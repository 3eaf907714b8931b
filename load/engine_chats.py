"""Holds the workload's conversations with an engine in this process, with no server around it."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from load.measurements import Level, Reply, TokenCounts
from load.supply import Plan, Supply
from load.timed_backend import RuntimeWork, TimedBackend
from load.workload import Conversation, Workload
from serve_app.generation.backends.base import Backend
from serve_app.generation.engine import Engine, EngineConfig
from serve_app.messages.generation import (
    Finished,
    FinishReason,
    Frame,
    GenerateRequest,
    SamplingParams,
)
from serve_app.tokenization.tokenizer import ChatTokenizer

__all__ = ["EngineChats", "EngineLevel"]

_SUBSCRIBER = "load"
# How often to make sure that the engine is alive while nothing comes from it.
_CHECK_S = 5.0
_STALL_S = 60.0


@dataclass(frozen=True, slots=True)
class EngineLevel:
    """What came of one level of concurrency, and where the engine's time went.

    Attributes:
        level: as through HTTP. TTFT begins when the engine is given the prompt's tokens.
        steps: steps of the engine.
        drafted: tokens computed in them that were guesses.
        draft_hits: guesses among them that were right.
        busy_s: seconds in which it had anything to do.
        work: what of that its backend did, and in what time.
    """

    level: Level
    steps: int
    drafted: int
    draft_hits: int
    busy_s: float
    work: RuntimeWork

    @property
    def outside_s(self) -> float:
        """Busy seconds outside the backend: scheduling, sampling, frames, and waiting for Python."""
        return self.busy_s - self.work.total_s


class EngineChats:
    """An engine and the one who talks with it; a context manager around the engine's thread.

    Args:
        backend: computes logits.
        config: the engine's limits.
        tokenizer: of the model that the backend runs.
        decode: turns a reply into text as a server does, leaving control tokens out.
    """

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        tokenizer: ChatTokenizer,
        *,
        decode: Callable[[list[int]], str],
    ) -> None:
        self._backend = TimedBackend(backend)
        self._tokenizer = tokenizer
        self._decode = decode
        self._engine = Engine(
            self._backend,
            config,
            eos_token_ids=tokenizer.info().eos_token_ids,
            deliver=self._deliver,
        )
        self._numbers = itertools.count()
        self._streams: dict[int, _Stream] = {}
        self._ended: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._busy = _BusyClock()

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

    def measure(
        self,
        workload: Workload,
        plan: Plan,
        *,
        on_level: Callable[[int], None] = lambda _: None,
    ) -> list[EngineLevel]:
        """Hold the conversations of every level of concurrency, one level after the other.

        Args:
            workload: what is said.
            plan: how much of it.
            on_level: told of each level's concurrency before it begins.

        Raises:
            ContextLengthExceeded: a conversation outgrows the engine's slots.
            Overloaded: more are held at once than the engine lets wait.
            GeneratorLost: the engine has died.
        """
        levels = []
        for concurrency, warm_up, measured in plan.levels(workload):
            on_level(concurrency)
            self._hold_all(workload, warm_up, concurrency)
            work, busy_s = self._backend.work(), self._busy.total_s
            before = self._engine.stats()
            began, cpu = time.perf_counter(), time.process_time()
            replies = self._hold_all(workload, measured, concurrency)
            ended, cpu_ended = time.perf_counter(), time.process_time()
            level = Level.of(
                replies,
                concurrency=concurrency,
                conversations=measured.handed_out,
                wall_s=ended - began,
                cpu_s=cpu_ended - cpu,
            )
            after = self._engine.stats()
            levels.append(
                EngineLevel(
                    level=level,
                    steps=after.steps_total - before.steps_total,
                    drafted=after.drafted_total - before.drafted_total,
                    draft_hits=after.draft_hits_total - before.draft_hits_total,
                    busy_s=self._busy.total_s - busy_s,
                    work=self._backend.work() - work,
                )
            )
        return levels

    def _hold_all(self, workload: Workload, supply: Supply, concurrency: int) -> list[Reply]:
        replies: list[Reply] = []
        for _ in range(concurrency):
            self._go_on(workload, supply, None)
        while self._streams:
            finished = self._next_end()
            stream = self._streams.pop(finished.stream)
            replies.append(stream.reply)
            if finished.reason not in (FinishReason.STOP, FinishReason.LENGTH):
                stream.reply.error = finished.error_code or finished.reason.value
                self._go_on(workload, supply, None)
                continue
            cost = TokenCounts(
                prompt=finished.prompt_tokens,
                cached=finished.cached_tokens,
                completion=finished.completion_tokens,
            )
            stream.reply.tokens = stream.conversation.hear(self._decode(stream.tokens), cost)
            self._go_on(workload, supply, stream.conversation)
        return replies

    def _go_on(self, workload: Workload, supply: Supply, conversation: Conversation | None) -> None:
        """Put the next question: of this conversation, or of another one where it is over."""
        if conversation is None or conversation.over:
            conversation = supply.next()
        if conversation is None or conversation.over:
            return
        prompt = self._tokenizer.encode_chat(conversation.ask()).tokens
        number = next(self._numbers)
        stream = _Stream(conversation, Reply(sent_at=time.perf_counter()))
        self._streams[number] = stream
        self._busy.begin(stream.reply.sent_at)
        self._engine.submit(
            GenerateRequest(
                request_id=f"{_SUBSCRIBER}-{number}",
                subscriber=_SUBSCRIBER,
                stream=number,
                prompt=prompt,
                sampling=SamplingParams(
                    max_tokens=workload.output_tokens,
                    seed=number,
                    temperature=workload.temperature,
                    ignore_eos=workload.ignore_eos,
                ),
            )
        )

    def _deliver(self, frames: Mapping[str, Frame]) -> None:
        """Take a step's frame; the engine's thread calls this and waits for it."""
        now = time.perf_counter()
        frame = frames[_SUBSCRIBER]
        for number, token in zip(frame.streams, frame.tokens, strict=True):
            stream = self._streams[number]
            stream.tokens.append(token)
            stream.reply.arrived(now)
        for finished in frame.finished:
            self._busy.end(now)
            self._ended.put(finished)

    def _next_end(self) -> Finished:
        while True:
            try:
                return self._ended.get(timeout=_CHECK_S)
            except queue.Empty:
                self._engine.check(_STALL_S)


@dataclass(slots=True)
class _Stream:
    conversation: Conversation
    reply: Reply
    tokens: list[int] = field(default_factory=list)


class _BusyClock:
    """Adds up the time in which at least one stream is in the engine. Two threads use it."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._lock = threading.Lock()
        self._open = 0
        self._since = 0.0

    def begin(self, now: float) -> None:
        with self._lock:
            if not self._open:
                self._since = now
            self._open += 1

    def end(self, now: float) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                self.total_s += now - self._since
