"""How many users talk when."""

from __future__ import annotations

import math
from collections.abc import Callable

from locust import LoadTestShape

__all__ = ["SHAPES", "ChosenShape"]

_STEPS = 5
# Of the peak, where it is quiet.
_QUIET = 0.1
# The part of the time in which a spike is, and how much of it a soak takes to fill and to empty.
_SPIKE = (0.4, 0.6)
_EDGE = 0.05


def _constant(_: float) -> float:
    return 1.0


def _steps(part: float) -> float:
    """Rise in equal steps, the last of which is the peak."""
    return (math.floor(part * _STEPS) + 1) / _STEPS


def _spike(part: float) -> float:
    """Be quiet, be at the peak at once in the middle, be quiet again."""
    return 1.0 if _SPIKE[0] <= part < _SPIKE[1] else _QUIET


def _soak(part: float) -> float:
    """Fill slowly, hold for nearly all of the time, empty slowly."""
    return min(1.0, part / _EDGE, (1.0 - part) / _EDGE)


def _diurnal(part: float) -> float:
    """Go through a day: quietest at its ends, busiest in its middle."""
    return _QUIET + (1.0 - _QUIET) * (1.0 - math.cos(2.0 * math.pi * part)) / 2.0


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "steps": _steps,
    "spike": _spike,
    "soak": _soak,
    "diurnal": _diurnal,
}
"""From the part of the run time that has passed, in [0, 1), to the share of the users that talk."""


class ChosenShape(LoadTestShape):
    """The shape of `--shape`, with the peak of `-u`, over the time of `-t`; without -t, constant."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Return the users that there should be and how many may start in a second; None at the end."""
        assert self.runner is not None  # noqa: S101 - Locust sets it before it asks
        options = self.runner.environment.parsed_options
        assert options is not None  # noqa: S101 - and these too
        peak, at_once = options.num_users or 1, options.spawn_rate or options.num_users or 1
        if not options.run_time:
            return peak, at_once
        part = self.get_run_time() / options.run_time
        if part >= 1.0:
            return None
        return max(1, round(peak * SHAPES[options.shape](part))), at_once
