"""Signals as exceptions: the first one ends the work, those during the clean-up are ignored."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt while it is entered.

    Attributes:
        received: the latest signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._armed = False
        self._before: dict[signal.Signals, object] = {}

    def arm(self) -> None:
        """Let the next signal interrupt again; until then they are ignored after the first."""
        self._armed = True

    def __enter__(self) -> Interrupts:
        self.arm()
        for one in _SIGNALS:
            self._before[one] = signal.signal(one, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt
