"""A build's phases become one number that grows, and no exception crosses TensorRT."""

from __future__ import annotations

import pytest

from serve_app.models.engine_build.progress import BuildProgress


class Told:
    """Keeps what a command would show."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.all.append((stage, done, total))

    @property
    def last(self) -> tuple[str, int, int]:
        return self.all[-1]


def test_nested_phases_fill_the_step_that_they_are_in() -> None:
    told = Told()
    progress = BuildProgress(told)
    progress.phase_started("Building Engine", None, 4)
    assert told.last == ("Building Engine", 0, 1000)
    assert progress.step_completed("Building Engine", 0)
    assert told.last == ("Building Engine", 250, 1000)
    progress.phase_started("Tactics", "Building Engine", 10)
    progress.step_completed("Tactics", 4)
    assert told.last == ("Building Engine", 375, 1000)
    progress.phase_started("Kernels", "Tactics", 2)
    progress.step_completed("Kernels", 0)
    assert told.last == ("Building Engine", 387, 1000)
    progress.phase_finished("Kernels")
    progress.phase_finished("Tactics")
    assert told.last == ("Building Engine", 500, 1000)
    progress.phase_finished("Building Engine")
    assert told.last == ("Building Engine", 1000, 1000)


def test_the_number_never_falls_and_begins_anew_with_a_stage() -> None:
    told = Told()
    progress = BuildProgress(told)
    progress.phase_started("Building", None, 2)
    for phase in ("one", "two"):  # both in the same step
        progress.phase_started(phase, "Building", 3)
        progress.step_completed(phase, 2)
        progress.phase_finished(phase)
    numbers = [done for _, done, _ in told.all]
    assert numbers == sorted(numbers)
    progress.phase_started("Serializing", None, 1)
    assert told.last == ("Serializing", 0, 1000)


def test_phases_nobody_knows_are_passed_over() -> None:
    told = Told()
    progress = BuildProgress(told)
    assert progress.step_completed("never begun", 0)
    progress.phase_finished("never begun")
    progress.phase_started("orphan", "never begun", 0)
    assert told.all == [("orphan", 0, 1000)]


def test_an_exception_stops_the_build_and_comes_back_afterwards() -> None:
    calls = 0

    def interrupted(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    progress = BuildProgress(interrupted)
    progress.phase_started("Building", None, 3)
    progress.raise_interruption()
    assert not progress.step_completed("Building", 0)
    assert not progress.step_completed("Building", 1)
    with pytest.raises(KeyboardInterrupt):
        progress.raise_interruption()
