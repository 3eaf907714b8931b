"""What the engine build asks of TensorRT: the border behind which nothing runs without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.engine_build.profiles import EngineProfile

__all__ = [
    "BuildRequest",
    "CompilerRefusal",
    "EngineCompiler",
    "PhaseListener",
    "TimingCacheRefusal",
]


class CompilerRefusal(Exception):
    """TensorRT doesn't build or refit an engine.

    Attributes:
        reasons: what its parser and its log say, the first cause first; may be empty.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(*reasons)
        self.reasons = tuple(reasons)


class TimingCacheRefusal(CompilerRefusal):
    """A timing cache is broken, or of another TensorRT or GPU; nothing has been built yet."""


class PhaseListener(Protocol):
    """Follows a build; see TensorRT's IProgressMonitor. Calls may come from any thread, and don't raise."""

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of some steps begins, within its parent or on its own."""

    def step_completed(self, name: str, step: int) -> bool:
        """A step, counted from 0, is through; return False to have the build stop."""

    def phase_finished(self, name: str) -> None:
        """A phase is over, whether or not all its steps were reported."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One engine to build.

    Attributes:
        graph: an .onnx file, its data files beside it.
        plan: where the serialized engine is written.
        profiles: the optimization profiles, in the order that their numbers shall have.
        options: how.
        timing_cache: what an earlier build has measured, or nothing.
    """

    graph: Path
    plan: Path
    profiles: Sequence[EngineProfile]
    options: BuildOptions
    timing_cache: bytes


class EngineCompiler(Protocol):
    """TensorRT's builder, parser and refitter, on the first GPU that this process sees."""

    @property
    def version(self) -> str:
        """TensorRT's version."""

    def build(self, request: BuildRequest, listener: PhaseListener) -> bytes:
        """Build an engine into `request.plan`.

        Returns:
            The timing cache, with what this build has measured.

        Raises:
            TimingCacheRefusal: the given cache can't be used.
            CompilerRefusal: the graph, the options or the memory won't do, or the listener stopped it.
        """

    def refit(self, plan: Path, graph: Path, refitted: Path) -> None:
        """Put a graph's weights into an engine that was built to be refitted, and write it whole.

        The new engine can be refitted again.

        Args:
            plan: the serialized engine.
            graph: an .onnx file of the same structure, its data files beside it.
            refitted: where the new serialized engine is written.

        Raises:
            CompilerRefusal: the engine can't be refitted, or not with this graph.
        """
