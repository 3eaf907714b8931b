"""How a long command tells what it is doing: steps with real numbers, shown by whoever called."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Quiet", "Steps"]


class Steps(Protocol):
    """Receives the progress of one command."""

    def begin(self, title: str) -> None:
        """Start a step; the one before it has ended well."""

    def end(self, *, well: bool = True) -> None:
        """End the step before another begins; where none is open, nothing happens."""

    def update(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say how far the step's stage is: `done` of `total`, or 0 of 0 where there is nothing to count."""

    def note(self, text: str) -> None:
        """Say something that stays on the screen."""


class Quiet:
    """Shows nothing."""

    def begin(self, title: str) -> None:
        """Start a step."""

    def end(self, *, well: bool = True) -> None:
        """End a step."""

    def update(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say how far the step is."""

    def note(self, text: str) -> None:
        """Say something."""
