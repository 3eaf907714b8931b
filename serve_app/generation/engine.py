"""The engine: a thread that steps as long as there is work, and what other threads may ask of it."""

from __future__ import annotations

import itertools
import logging
import threading
import time

import numpy as np

from serve_app.errors import (
    ConfigError,
    ContextLengthExceeded,
    GeneratorLost,
    GeneratorStopping,
    InvalidRequest,
    QueueFull,
)
from serve_app.generation.backends.base import Backend, SamplingBackend
from serve_app.generation.config import EngineConfig, EngineStats
from serve_app.generation.engine_core import EngineCore
from serve_app.generation.outbox import Deliver
from serve_app.generation.sampling import Sampler
from serve_app.generation.sequence import Sequence
from serve_app.messages.generation import FinishReason, GenerateRequest, Room

__all__ = ["Engine", "EngineConfig", "EngineStats"]

logger = logging.getLogger(__name__)

# One failing step may be one bad request; this many in a row are a broken backend.
_FAILURES_TO_REPORT = 3
_RETRY_AFTER_S = (1.0, 60.0)
# Beyond the drain: time for the last step to end.
_JOIN_S = 10.0


class Engine:
    """Continuous batching over one backend, behind methods that any thread may call.

    Args:
        backend: computes logits. The engine allocates its memory and is its only caller.
        config: limits; a device may have memory for fewer slots.
        eos_token_ids: tokens that end a turn.
        deliver: called from the engine's thread at most once per step, with a frame for each
            subscriber that has anything in it. It must not block; if it raises, the engine dies.

    Raises:
        ConfigError: `max_len` is beyond the model's context, or a device has no memory for a slot.
    """

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        *,
        eos_token_ids: tuple[int, ...],
        deliver: Deliver,
    ) -> None:
        if config.max_len > backend.context_length:
            msg = (
                f"generator.max_len is {config.max_len}, and this model's context is "
                f"{backend.context_length} tokens; lower generator.max_len."
            )
            raise ConfigError(msg)
        if isinstance(backend, SamplingBackend):
            config = backend.fitted(config)
        self.config = config
        self._vocab_size = backend.vocab_size
        self._eos_token_ids = eos_token_ids
        self._core = EngineCore(backend, config, deliver)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._arrivals = itertools.count()
        # Guards the four below; the engine's thread waits on it for work.
        self._changed = threading.Condition()
        self._streams: dict[str, Sequence] = {}
        self._submitted: list[Sequence] = []
        self._cancelled: list[Sequence] = []
        self._drain_until: float | None = None
        # Read by other threads without the lock.
        self._step_started: float | None = None
        self._crash: Exception | None = None

    def start(self) -> None:
        """Start the thread; call it once."""
        self._thread.start()

    def drain(self, drain_s: float) -> None:
        """Take no more requests, and end the thread once those in progress are gone.

        Args:
            drain_s: seconds after which what still runs is handed back; of several calls the
                shortest counts.
        """
        with self._changed:
            until = time.monotonic() + drain_s
            self._drain_until = min(until, self._drain_until or until)
            self._changed.notify()

    def stop(self, drain_s: float) -> None:
        """Drain, and wait for the end of the thread.

        Args:
            drain_s: see `drain`.
        """
        self.drain(drain_s)
        if self._thread.is_alive():
            self._thread.join(drain_s + _JOIN_S)
        if self._thread.is_alive():
            logger.error("the engine's step is stuck; its thread is left behind")

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request; its frames begin to arrive at `deliver`.

        Raises:
            InvalidRequest: the request can't be meant: no prompt, an unknown token, an id in use.
            ContextLengthExceeded: the prompt leaves no room for a reply.
            QueueFull: as many wait as may.
            GeneratorStopping: the engine takes no more; another one may take the request.
        """
        self._check_request(request)
        with self._changed:
            self._check_room(request)
            sequence = Sequence(
                request=request,
                arrival=next(self._arrivals),
                sampler=Sampler(
                    request.sampling,
                    request.prompt,
                    request.output,
                    self._eos_token_ids,
                    self._vocab_size,
                ),
                reserved=min(
                    len(request.prompt) + request.sampling.max_tokens, self.config.max_len
                ),
                submitted_at=time.monotonic(),
            )
            self._streams[request.request_id] = sequence
            self._submitted.append(sequence)
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """End a stream before the next step; one that is unknown or has ended is no error."""
        with self._changed:
            sequence = self._streams.get(request_id)
            if sequence is not None:
                self._cancelled.append(sequence)

    def cancel_subscriber(self, subscriber: str) -> None:
        """End all streams of a subscriber before the next step."""
        with self._changed:
            self._cancelled.extend(
                sequence
                for sequence in self._streams.values()
                if sequence.request.subscriber == subscriber
            )

    def room(self, subscriber: str) -> Room:
        """Return what a subscriber is to know, so that it asks for no place that isn't there."""
        with self._changed:
            return Room(
                places=self._places,
                others=sum(
                    sequence.request.subscriber != subscriber for sequence in self._streams.values()
                ),
                drain_s=self._retry_after(),
            )

    @property
    def stopping(self) -> bool:
        """Whether it takes no more requests."""
        return self._drain_until is not None or self._crash is not None

    def stats(self) -> EngineStats:
        """Return what the engine is doing; cheap, and exact between steps."""
        with self._changed:
            streams = list(self._streams.values())
        core = self._core
        running = [sequence for sequence in streams if sequence.running]
        return EngineStats(
            slots=self.config.slots,
            free_slots=self.config.slots - len(running),
            running=len(running),
            waiting=len(streams) - len(running),
            queued_prompt_tokens=sum(
                sequence.uncomputed for sequence in streams if sequence.first_token_at is None
            ),
            cached_tokens=sum(sequence.computed for sequence in running),
            reserved_tokens=sum(sequence.reserved for sequence in running),
            generated_total=core.generated,
            prefilled_total=core.prefilled,
            prefix_hits_total=core.prefix_hits,
            drafted_total=core.drafted,
            draft_hits_total=core.draft_hits,
            steps_total=core.steps,
            step_s=core.step_s,
            tokens_per_s=core.tokens_per_s,
            work_s_total=core.work_s,
            prefix_blocks=core.prefixes.used,
            prefix_capacity=core.prefixes.capacity,
            failed_steps=core.failures,
        )

    def check(self, stall_timeout_s: float) -> None:
        """Make sure that the engine works.

        Raises:
            GeneratorLost: the thread has died, a step has been running for longer than
                `stall_timeout_s` seconds, or one step after the other fails.
        """
        if self._crash is not None or not self._thread.is_alive():
            why = f" ({self._crash})" if self._crash else ""
            msg = f"The engine's thread is not running{why}; this replica has to be replaced."
            raise GeneratorLost(msg) from self._crash
        started = self._step_started
        if started is not None and (took := time.monotonic() - started) > stall_timeout_s:
            msg = f"The engine has been in one step for {took:.1f} s; this replica has to be replaced."
            raise GeneratorLost(msg)
        if self._core.failures >= _FAILURES_TO_REPORT:
            msg = f"{self._core.failures} steps in a row have failed; this replica has to be replaced."
            raise GeneratorLost(msg) from self._core.failure

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step_started = time.monotonic()
                self._core.step()
                self._flush()
                self._step_started = None
        except GeneratorLost as error:
            logger.exception("the backend is lost; its streams are handed back")
            self._hand_back(error)
        except Exception as error:
            logger.exception("the engine's loop died")
            self._crash = error

    def _hand_back(self, error: GeneratorLost) -> None:
        """Take nothing more, and give all streams back, for another generator to go on with them."""
        with self._changed:
            self._crash = error
            submitted, self._submitted = self._submitted, []
        for sequence in submitted:
            self._core.add(sequence)
        self._core.hand_back()
        self._flush()

    def _wait_for_work(self) -> bool:
        """Take in what other threads have asked for; wait if that is nothing.

        Returns:
            Whether there is a step to run; False ends the thread.
        """
        core = self._core
        with self._changed:
            while not self._streams and self._drain_until is None:
                self._changed.wait()
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
            live = list(self._streams.values())
            drain_until = self._drain_until
        for sequence in submitted:
            core.add(sequence)
        now = time.monotonic()
        given_up = drain_until is not None and now >= drain_until
        cancelled_ids = {id(sequence) for sequence in cancelled}
        for sequence in live:
            if id(sequence) in cancelled_ids:
                core.end(sequence, FinishReason.CANCELLED)
            elif sequence.expired(now):
                core.end(sequence, FinishReason.DEADLINE)
            elif given_up:
                core.end(sequence, FinishReason.HANDED_BACK)
        if given_up:
            self._flush()
        return drain_until is None or bool(self._streams)

    def _flush(self) -> None:
        ended = self._core.flush()
        if ended:
            with self._changed:
                for sequence in ended:
                    del self._streams[sequence.request.request_id]

    def _check_room(self, request: GenerateRequest) -> None:
        """Refuse a request that there is no place for; call it with the lock held."""
        if self.stopping:
            msg = "This generator is stopping and takes no more requests; try again."
            raise GeneratorStopping(msg, retry_after=_RETRY_AFTER_S[0])
        if len(self._streams) >= self._places and not request.moves:
            retry_after = self._retry_after()
            msg = (
                f"The queue of this generator is full ({self.config.max_queued} waiting); "
                f"try again in {retry_after:.0f} s."
            )
            raise QueueFull(msg, retry_after=retry_after)
        if request.request_id in self._streams:
            msg = f"A request called {request.request_id} is in progress; choose another id."
            raise InvalidRequest(msg)

    @property
    def _places(self) -> int:
        return self.config.slots + self.config.max_queued

    def _retry_after(self) -> float:
        """Estimate the seconds until what waits now is worked off; call it with the lock held."""
        waiting = sum(
            sequence.reserved for sequence in self._streams.values() if not sequence.running
        )
        least, most = _RETRY_AFTER_S
        rate = self._core.tokens_per_s
        return min(max(waiting / rate, least), most) if rate else least

    def _check_request(self, request: GenerateRequest) -> None:
        if not request.prompt:
            msg = "The prompt is empty; send at least one token."
            raise InvalidRequest(msg, param="prompt")
        if request.sampling.max_tokens < 1:
            msg = "max_tokens must be at least 1."
            raise InvalidRequest(msg, param="max_tokens")
        tokens = np.array(request.prompt + request.output, np.int64)
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            msg = f"The prompt has a token that isn't one of 0 to {self._vocab_size - 1}."
            raise InvalidRequest(msg, param="prompt")
        produced, most = len(request.output), request.sampling.max_tokens
        if produced > most:
            msg = f"{produced} tokens were produced already, more than max_tokens ({most})."
            raise InvalidRequest(msg, param="max_tokens")
        if len(request.prompt) >= self.config.max_len or len(tokens) > self.config.max_len:
            msg = (
                f"The prompt has {len(request.prompt)} tokens; a sequence can have "
                f"{self.config.max_len} with its reply, so shorten the prompt to at most "
                f"{self.config.max_len - 1}."
            )
            raise ContextLengthExceeded(msg, param="prompt")
