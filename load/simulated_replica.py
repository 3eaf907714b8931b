"""A generator replica in simulated time: slots, prompts one after the other, steps that take time."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

from load.step_times import StepTimes
from serve_app.generation.config import EngineStats
from serve_app.generation.forecast import WorkRate, predicted_ttft_s

__all__ = ["Request", "SimulatedReplica"]

# How much of the measured throughput is kept with every second.
_MEMORY = 0.95


@dataclass(slots=True)
class Request:
    """One request.

    Attributes:
        due_at: second at which it arrives.
        prompt: prompt tokens that have to be computed.
        output: tokens of its reply.
        first_at: second of its first token; None as long as it has none.
    """

    due_at: float
    prompt: int
    output: int
    first_at: float | None = None


class SimulatedReplica:
    """Does in a second what an engine with these step times would, to within that second.

    As in the engine, prompts are computed in the order of arrival, one at a time, by those who have a
    slot, and take no more of the time than keeps a step within `prompt_slowdown` times what it takes
    without.

    Args:
        times: what its steps take.
        slots: slots.
        prompt_slowdown: how many times as long as usual a step may take for the sake of prompts.
        max_tokens: tokens that a reply may have, as far as the engine knows.
    """

    def __init__(
        self, times: StepTimes, *, slots: int, prompt_slowdown: float, max_tokens: int
    ) -> None:
        self._times = times
        self._slots = slots
        self._prompt_share = 1.0 - 1.0 / prompt_slowdown
        self._max_tokens = max_tokens
        self._waiting: deque[Request] = deque()
        self._prefilling: Request | None = None
        self._left = 0.0
        # Those who decode, by how many tokens every stream will have had when theirs are done.
        self._decoding: list[tuple[float, int, Request]] = []
        self._decoded = 0.0
        self._numbers = 0
        self._queued = 0.0
        self._recent_tokens = 0.0
        self._recent_s = 0.0
        self._work_s = 0.0
        self._now = 0.0
        self._work = WorkRate(lambda: self._now)

    @property
    def streams(self) -> int:
        """Requests that run or wait."""
        return len(self._waiting) + self._running

    @property
    def _running(self) -> int:
        return len(self._decoding) + (self._prefilling is not None)

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)
        self._queued += request.prompt

    def advance(self, now: float, seconds: float) -> None:
        """Let some seconds pass.

        Args:
            now: when they begin.
            seconds: how many; what a stream does within them is not told apart.
        """
        self._now = now + seconds
        if not self.streams:
            return
        share = self._prompt_share if self._decoding else 1.0
        computed, used_s = self._compute_prompts(now, seconds, seconds * share)
        left_s = seconds - used_s
        tokens = 0.0
        if self._decoding:
            steps = left_s / self._times.step(len(self._decoding))
            tokens = sum(min(steps, end - self._decoded) for end, _, _ in self._decoding)
            self._decoded += steps
            while self._decoding and self._decoding[0][0] <= self._decoded:
                heapq.heappop(self._decoding)
        full_s = self._times.itself / self._slots + self._times.stream
        self._work_s += tokens * full_s + computed * self._times.prompt_token
        busy_s = seconds if self._decoding or tokens else used_s
        self._recent_tokens = self._recent_tokens * _MEMORY + tokens + computed
        self._recent_s = self._recent_s * _MEMORY + busy_s

    def recorded(self) -> dict[str, float]:
        """Return what a generator records for the autoscaler, computed by the same code."""
        stats = self._stats()
        return {
            "streams": float(stats.running + stats.waiting),
            "slots": float(stats.slots),
            "work": self._work.since_last(stats),
            "queued_tokens": float(stats.queued_prompt_tokens),
            "predicted_ttft_s": predicted_ttft_s(stats),
        }

    def _compute_prompts(self, now: float, seconds: float, budget_s: float) -> tuple[float, float]:
        """Compute prompts within a budget; return the tokens and the seconds that it took."""
        tokens = used_s = 0.0
        while used_s < budget_s:
            if self._prefilling is None:
                if not self._waiting or self._running >= self._slots:
                    break
                self._prefilling = self._waiting.popleft()
                self._left = float(self._prefilling.prompt)
            able = (budget_s - used_s) / self._times.prompt_token
            done = min(self._left, able)
            used_s += done * self._times.prompt_token
            tokens += done
            self._left -= done
            self._queued -= done
            if self._left > 1e-9:
                break
            request, self._prefilling = self._prefilling, None
            # Prompts are spread over the seconds, with steps of those who decode between them.
            step_s = self._times.step(len(self._decoding) + 1)
            alone_s = request.prompt * self._times.prompt_token
            request.first_at = step_s + max(
                now + seconds * used_s / budget_s, request.due_at + alone_s
            )
            self._numbers += 1
            end = self._decoded + request.output
            heapq.heappush(self._decoding, (end, self._numbers, request))
        return tokens, used_s

    def _stats(self) -> EngineStats:
        left = sum(end - self._decoded for end, _, _ in self._decoding)
        held = sum(request.prompt + request.output for _, _, request in self._decoding) - left
        reserved = sum(request.prompt + self._max_tokens for _, _, request in self._decoding)
        return EngineStats(
            slots=self._slots,
            free_slots=self._slots - self._running,
            running=self._running,
            waiting=len(self._waiting),
            queued_prompt_tokens=round(max(self._queued, 0.0)),
            cached_tokens=round(held),
            reserved_tokens=round(reserved),
            generated_total=0,
            prefilled_total=0,
            prefix_hits_total=0,
            drafted_total=0,
            draft_hits_total=0,
            steps_total=0,
            step_s=self._times.step(len(self._decoding)),
            work_s_total=self._work_s,
            tokens_per_s=self._recent_tokens / self._recent_s if self._recent_s else 0.0,
            prefix_blocks=0,
            prefix_capacity=0,
            failed_steps=0,
        )
