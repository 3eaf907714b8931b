"""What a run must hold to pass; where it doesn't, Locust's exit code is 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from locust.env import Environment
from locust.stats import RequestStats, StatsEntry
from rich.console import Console
from rich.table import Table

from load.swarm.statistics import INTER_TOKEN, REPLY, TOKENS, TTFT

__all__ = ["LIMITS", "Limit", "Verdict", "judge", "report_limits"]


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that may be asked of a run.

    Attributes:
        help: what it is, for the command line.
        most: whether the bound is the most that is allowed, or else the least.
        measure: returns what was measured; None where nothing was.
    """

    help: str
    most: bool
    measure: Callable[[RequestStats], float | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a limit that was asked for.

    Attributes:
        name: the option.
        bound: what was asked for.
        measured: what was measured; None where nothing was, which never passes.
        passed: whether it holds.
    """

    name: str
    bound: float
    measured: float | None
    passed: bool


def _together(stats: RequestStats, kind: str) -> StatsEntry:
    """Return all entries of a kind as one."""
    every = StatsEntry(stats, "all", kind)
    for entry in list(stats.entries.values()):
        if entry.method == kind:
            every.extend(entry)
    return every


def _percentile(kind: str, share: float) -> Callable[[RequestStats], float | None]:
    def measure(stats: RequestStats) -> float | None:
        every = _together(stats, kind)
        return float(every.get_response_time_percentile(share)) if every.num_requests else None

    return measure


def _error_percent(stats: RequestStats) -> float | None:
    replies = _together(stats, REPLY)
    return 100.0 * replies.num_failures / replies.num_requests if replies.num_requests else None


def _tokens_per_s(stats: RequestStats) -> float | None:
    tokens = _together(stats, TOKENS)
    if not tokens.num_requests or tokens.start_time is None:
        return None
    seconds = (tokens.last_request_timestamp or tokens.start_time) - tokens.start_time
    return tokens.total_content_length / seconds if seconds > 0 else None


LIMITS = {
    "max-ttft-p95-ms": Limit(
        "Most milliseconds to a first token, p95.", most=True, measure=_percentile(TTFT, 0.95)
    ),
    "max-inter-token-p99-ms": Limit(
        "Most milliseconds between tokens, p99.", most=True, measure=_percentile(INTER_TOKEN, 0.99)
    ),
    "max-error-percent": Limit(
        "Most replies that fail, in percent.", most=True, measure=_error_percent
    ),
    "min-tokens-per-s": Limit(
        "Fewest tokens per second, all users'.", most=False, measure=_tokens_per_s
    ),
}
"""By the option that asks for it."""


def judge(stats: RequestStats, bounds: dict[str, float | None]) -> list[Verdict]:
    """Return a verdict on each limit that was asked for.

    Args:
        stats: what Locust has counted.
        bounds: by name of the limit; None where it wasn't asked for.
    """
    verdicts = []
    for name, limit in LIMITS.items():
        bound = bounds.get(name)
        if bound is None:
            continue
        measured = limit.measure(stats)
        passed = measured is not None and (measured <= bound if limit.most else measured >= bound)
        verdicts.append(Verdict(name, bound, measured, passed))
    return verdicts


def report_limits(environment: Environment, **_: Any) -> None:
    """Print the verdicts and set the exit code; Locust calls this as it quits.

    Where no limit was asked for, Locust's own rule decides: 1 if anything failed.
    """
    options = environment.parsed_options
    bounds = {name: getattr(options, name.replace("-", "_"), None) for name in LIMITS}
    verdicts = judge(environment.stats, bounds)
    if not verdicts:
        return
    table = Table("limit", title="limits", title_justify="left")
    for heading in ("bound", "measured", "verdict"):
        table.add_column(heading, justify="right")
    for verdict in verdicts:
        table.add_row(
            verdict.name,
            f"{verdict.bound:g}",
            "–" if verdict.measured is None else f"{verdict.measured:.1f}",
            "held" if verdict.passed else "BROKEN",
        )
    Console(highlight=False, soft_wrap=True).print(table)
    environment.process_exit_code = 0 if all(verdict.passed for verdict in verdicts) else 1
