"""A checkpoint's tensors as a graph's author reads them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from serve_app.models.checkpoint import Checkpoint, FloatArray, Progress

__all__ = ["Weights"]


class Weights:
    """The checkpoint's tensors, counted as they are read."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress) -> None:
        self.architecture = checkpoint.architecture
        self._checkpoint = checkpoint
        self._progress = progress
        self._done = 0
        self._total = sum(1 for _ in checkpoint.architecture.tensors())

    def __call__(self, name: str) -> FloatArray:
        """Read one tensor."""
        tensor = self._checkpoint.tensor(name)
        self._done += 1
        self._progress("writing weights", self._done, self._total)
        return tensor

    def stacked(self, names: Iterable[str]) -> FloatArray:
        """Read several tensors and join them along their first axis."""
        return np.concatenate([self(name) for name in names])
