"""Adds up where a request's time goes, while it goes: stages and calls are blocks of `with`.

Whoever runs on behalf of a request finds its ledger in the context, so that what is deep inside, such as
a wait for Redis, is counted where it belongs without being told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType

from serve_app.telemetry.account import STAGES, Spent, Stage, StageName

__all__ = [
    "Hop",
    "Ledger",
    "OpenStage",
    "Recording",
    "current",
    "hop",
    "recording",
    "reset",
    "stage",
    "use",
    "waited",
]

_PLACES = {name: place for place, name in enumerate(STAGES)}


class Ledger:
    """Adds up stages while they happen.

    One stage may be open inside of another, whose time is then what the inner one leaves. Stages of one
    ledger never run side by side.

    Attributes:
        innermost: the stage that is open inside of all others, or None.
    """

    __slots__ = ("_booked_s", "_times", "innermost")

    def __init__(self) -> None:
        self._times: dict[StageName, tuple[float, float]] = {}
        self._booked_s = 0.0
        self.innermost: OpenStage | None = None

    @property
    def booked_s(self) -> float:
        """Seconds in all stages together."""
        return self._booked_s

    def book(self, name: StageName, *, transfer_s: float = 0.0, compute_s: float = 0.0) -> None:
        """Add seconds to a stage."""
        transfer, compute = self._times.get(name, (0.0, 0.0))
        self._times[name] = transfer + transfer_s, compute + compute_s
        self._booked_s += transfer_s + compute_s

    def stage(self, name: StageName) -> OpenStage:
        """Return a context manager whose block is a stage: compute, but for what it waits for."""
        return OpenStage(self, name)

    def hop(self, name: StageName) -> Hop:
        """Return a context manager whose block is a call to another machine."""
        return Hop(self, name)

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages so far, in the order of `STAGES`."""
        names = sorted(self._times, key=_PLACES.__getitem__)
        return tuple(Stage(name, *self._times[name]) for name in names)


class OpenStage:
    """A stage that is under way; use it as a context manager, once."""

    __slots__ = ("_began", "_inner_s", "_ledger", "_name", "_outer", "_waited_s")

    def __init__(self, ledger: Ledger, name: StageName) -> None:
        self._ledger = ledger
        self._name = name
        self._outer: OpenStage | None = None
        self._began = 0.0
        self._inner_s = 0.0
        self._waited_s = 0.0

    def __enter__(self) -> OpenStage:
        self._outer, self._ledger.innermost = self._ledger.innermost, self
        self._began = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        took_s = time.perf_counter() - self._began
        self._ledger.innermost = self._outer
        if self._outer is not None:
            self._outer.contained(took_s)
        self._close(took_s - self._inner_s)

    def waited(self, seconds: float) -> None:
        """Take seconds of the block for transfer."""
        self._waited_s += seconds

    def contained(self, seconds: float) -> None:
        """Take seconds of the block for a stage inside of it."""
        self._inner_s += seconds

    def _close(self, own_s: float) -> None:
        waited_s = min(self._waited_s, own_s)
        self._ledger.book(self._name, transfer_s=waited_s, compute_s=own_s - waited_s)


class Hop(OpenStage):
    """A call to another machine that is under way; one that brings no report is all transfer."""

    __slots__ = ("_spent",)

    def __init__(self, ledger: Ledger, name: StageName) -> None:
        super().__init__(ledger, name)
        self._spent = Spent(0.0)

    def __enter__(self) -> Hop:
        super().__enter__()
        return self

    def answered(self, answer: object) -> None:
        """Take what the other machine reports.

        Args:
            answer: that, or a message that has it in `spent`. One of a replica of the version before has
                nothing there.
        """
        spent = answer if isinstance(answer, Spent) else getattr(answer, "spent", None)
        self._spent = spent or self._spent

    def _close(self, own_s: float) -> None:
        spent = self._spent.within(own_s)
        for part in spent.stages:
            self._ledger.book(part.name, transfer_s=part.transfer_s, compute_s=part.compute_s)
        inside_s = sum(part.total_s for part in spent.stages)
        self._ledger.book(
            self._name, transfer_s=own_s - spent.total_s, compute_s=spent.total_s - inside_s
        )


_current: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


def current() -> Ledger | None:
    """Return the ledger of what runs now, or None where nobody keeps one."""
    return _current.get()


def use(ledger: Ledger) -> Token[Ledger | None]:
    """Make a ledger that of all that runs from here on in this context, until it is `reset`."""
    return _current.set(ledger)


def reset(token: Token[Ledger | None]) -> None:
    """Go back to the ledger before `use`."""
    _current.reset(token)


class Recording:
    """A ledger and when it was begun."""

    __slots__ = ("_began", "ledger")

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._began = time.perf_counter()

    def spent(self) -> Spent:
        """Return what has been spent by now."""
        return Spent(time.perf_counter() - self._began, self.ledger.stages())


@contextmanager
def recording() -> Iterator[Recording]:
    """Keep a ledger of what runs in the block, for whoever called from elsewhere."""
    recorded = Recording()
    token = use(recorded.ledger)
    try:
        yield recorded
    finally:
        reset(token)


def stage(name: StageName) -> OpenStage:
    """Return a context manager whose block is a stage of the ledger in use, or of none."""
    return (current() or Ledger()).stage(name)


def hop(name: StageName) -> Hop:
    """Return a context manager whose block is a call to another machine; see `stage`."""
    return (current() or Ledger()).hop(name)


def waited(seconds: float) -> None:
    """Take seconds of the innermost stage that is open for transfer; where none is, nothing happens."""
    ledger = current()
    if ledger is not None and ledger.innermost is not None:
        ledger.innermost.waited(seconds)
