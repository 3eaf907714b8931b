"""Where the time of one request goes: T = Σ (dᵢ + cᵢ) over its stages, dᵢ to move data, cᵢ to work on it.

Stages follow one another, so they add up: what runs beside the request's own way, such as writing one
token while the next is computed, is in none. Every duration is the difference of two readings of one
machine's monotonic clock. What a stage does on another machine is reported by that machine, as a
duration; the rest of the round trip is transfer. Clocks of two machines are never compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

__all__ = ["STAGES", "Account", "Spent", "Stage", "StageName"]

StageName = Literal[
    "receive",
    "validate",
    "turn",
    "plan",
    "load",
    "understand",
    "decide",
    "tokenize",
    "submit",
    "queue",
    "prefill",
    "decode",
    "move",
    "commit",
    "store",
    "assemble",
    "write",
]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""Every stage there is, in the order of a request's way; what each is stands in docs/latency.md."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a request's time.

    Attributes:
        name: which.
        transfer_s: seconds in which data moved, or somebody else's answer was waited for.
        compute_s: seconds on the machine that does the stage's work, waiting for its turn included.
    """

    name: StageName
    transfer_s: float = 0.0
    compute_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Seconds of the stage."""
        return self.transfer_s + self.compute_s

    def scaled(self, share: float) -> Stage:
        """Return the stage with its times multiplied."""
        return replace(self, transfer_s=self.transfer_s * share, compute_s=self.compute_s * share)


@dataclass(frozen=True, slots=True)
class Spent:
    """What another machine reports of a call.

    Attributes:
        total_s: seconds from the call's arrival there to its answer.
        stages: parts of them that are stages of their own.
    """

    total_s: float
    stages: tuple[Stage, ...] = ()

    def within(self, round_trip_s: float) -> Spent:
        """Return it no longer than the round trip, which two clocks of different speed could make it."""
        if self.total_s <= round_trip_s:
            return self
        share = max(round_trip_s, 0.0) / self.total_s
        return Spent(round_trip_s, tuple(stage.scaled(share) for stage in self.stages))


@dataclass(frozen=True, slots=True)
class Account:
    """Where the time of one request went.

    Attributes:
        request: id of the reply, "" where there was none.
        http_request: the `x-request-id` that the reply carried, "" where Serve gave none.
        api: what was asked for, such as "chat.completions".
        created_at: Unix seconds of its arrival, to tell when it was and for nothing else.
        total_s: seconds from its arrival to its end.
        stages: at most one of each name, in the order of `STAGES`.
        first_token_s: seconds from its arrival to its first token, or None where none came.
        prompt_tokens: of the prompt.
        cached_tokens: how many of them came from a prefix cache.
        completion_tokens: tokens generated.
        choices: replies that were asked for at once; the account follows the one that ended last.
        moves: how often that one went on with another generator.
        error: code of what it failed with, or None.
    """

    request: str
    http_request: str
    api: str
    created_at: float
    total_s: float
    stages: tuple[Stage, ...]
    first_token_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    choices: int = 1
    moves: int = 0
    error: str | None = None

    @property
    def accounted_s(self) -> float:
        """Seconds that stages account for."""
        return sum(stage.total_s for stage in self.stages)

    @property
    def unaccounted_s(self) -> float:
        """Seconds that no stage accounts for."""
        return self.total_s - self.accounted_s
