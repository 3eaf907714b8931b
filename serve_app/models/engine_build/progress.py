"""From TensorRT's nested phases to one number that only grows."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from serve_app.models.checkpoint import Progress

__all__ = ["BuildProgress"]

_WHOLE = 1000


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    child: str | None = None


class BuildProgress:
    """Tells a command how far a build is: the listener that the compiler is given.

    TensorRT reports phases within phases, each of so many steps; the step that a phase is at is as far
    as the phase within it. A phase without a parent is a stage of its own, of 1000 parts.

    TensorRT's calls come from C++, which an exception must not cross. One that comes up in a call, such
    as that of Ctrl-C, is kept, the build is told to stop, and `raise_interruption` brings it back.

    Args:
        progress: told of stages.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._told = 0
        self._lock = threading.Lock()
        self._interruption: BaseException | None = None

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """See `PhaseListener`."""
        with self._lock:
            known = parent if parent in self._phases else None
            self._phases[name] = _Phase(known, max(steps, 1))
            if known is None:
                self._told = 0
            else:
                self._phases[known].child = name
        self._tell(name)

    def step_completed(self, name: str, step: int) -> bool:
        """See `PhaseListener`."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done = min(step + 1, phase.steps)
                phase.child = None
        self._tell(name)
        return self._interruption is None

    def phase_finished(self, name: str) -> None:
        """See `PhaseListener`."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done, phase.child = phase.steps, None
        self._tell(name)
        with self._lock:
            phase = self._phases.pop(name, None)
            above = self._phases.get(phase.parent) if phase and phase.parent else None
            if above is not None and above.child == name:
                above.child = None

    def raise_interruption(self) -> None:
        """Raise what came up during a call, if anything did."""
        if self._interruption is not None:
            raise self._interruption

    def _tell(self, name: str) -> None:
        try:
            with self._lock:
                stage = self._stage_of(name)
                if stage is None:
                    return
                self._told = max(self._told, int(_WHOLE * self._part(stage)))
                told = self._told
            self._progress(stage, told, _WHOLE)
        except BaseException as error:  # noqa: BLE001 - raised again where no C++ is in between
            self._interruption = self._interruption or error

    def _stage_of(self, name: str) -> str | None:
        """Return the outermost phase around one, or None where that is unknown."""
        phase = self._phases.get(name)
        while phase is not None and phase.parent is not None:
            name = phase.parent
            phase = self._phases.get(name)
        return name if phase is not None else None

    def _part(self, name: str) -> float:
        phase = self._phases.get(name)
        if phase is None:
            return 0.0
        within = self._part(phase.child) if phase.child is not None else 0.0
        return min(1.0, (phase.done + within) / phase.steps)
