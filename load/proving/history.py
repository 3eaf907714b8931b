"""What was done, what came of it, and which promises were broken."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["PROMISES", "History", "LoggedErrors", "Promise", "Violation"]

Promise = Literal[
    "no acknowledged turn is lost",
    "none is there twice under one key",
    "turns are totally ordered",
    "no tenant reads another's data",
    "every stream has one last event",
    "every resumed stream equals the original",
    "replies are what their line calls for",
    "what is deleted stays away",
    "every request gets a foreseen answer",
]
PROMISES: tuple[Promise, ...] = get_args(Promise)

_MOST_LINES = 20_000


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken.

    Attributes:
        promise: which one.
        what: what was seen, with the ids that lines of the history have.
    """

    promise: Promise
    what: str


class LoggedErrors(logging.Handler):
    """Puts what replicas log as errors, with tracebacks, where it happened.

    Args:
        history: takes note.
    """

    def __init__(self, history: History) -> None:
        super().__init__(logging.ERROR)
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a record."""
        self._history.note(f"logged: {self.format(record)}")


class History:
    """Notes of one run.

    Attributes:
        operations: how often each kind was done.
        outcomes: how often each kind ended how.
        kills: how often what was killed.
        lost_answers: how often an answer of Redis was lost, by what it was to.
        checks: how often each promise was looked at.
        violations: what was broken.
    """

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.kills: Counter[str] = Counter()
        self.lost_answers: Counter[str] = Counter()
        self.checks: Counter[Promise] = Counter()
        self.violations: list[Violation] = []
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._began = time.monotonic()

    @property
    def lines(self) -> list[str]:
        """What happened, in order, with seconds since the beginning."""
        return list(self._lines)

    def note(self, what: str) -> None:
        """Write a line."""
        self._lines.append(f"{time.monotonic() - self._began:8.3f} {what}")

    def ended(self, operation: str, outcome: str) -> None:
        """Count an operation by how it ended."""
        self.outcomes[operation, outcome] += 1

    def check(self, promise: Promise, kept: object, what: str) -> bool:
        """Look at a promise, and take note where it was not kept.

        Args:
            promise: which one.
            kept: whether it was.
            what: what was seen.
        """
        self.checks[promise] += 1
        if not kept:
            self.violations.append(Violation(promise, what))
            self.note(f"VIOLATION {promise}: {what}")
        return bool(kept)

    def add(self, other: History) -> None:
        """Add another run's counts and violations."""
        self.operations += other.operations
        self.outcomes += other.outcomes
        self.kills += other.kills
        self.lost_answers += other.lost_answers
        self.checks += other.checks
        self.violations += other.violations
