"""What every checkpoint reader offers: an architecture, fp32 tensors by name, and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import ModelError
from serve_app.models.architecture import Architecture
from serve_app.models.tokenizer_files import TokenizerFiles

__all__ = ["Checkpoint", "FloatArray", "Progress", "check_tensors", "no_progress"]

FloatArray: TypeAlias = NDArray[np.float32]

# Names of buffers that old checkpoints carry and that the architecture determines anyway.
_DERIVED = "rotary_emb.inv_freq"


class Progress(Protocol):
    """Called as a long step goes on, with real numbers."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units (bytes or tensors) of `stage` are through."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""


class Checkpoint(Protocol):
    """The weights of one model, readable one tensor at a time.

    Tensors have Hugging Face's names and layout (linears [out, in], rotary halves not
    interleaved), whatever the file's own convention; `Architecture.tensors` lists them.
    """

    @property
    def architecture(self) -> Architecture:
        """What the weights are for."""
        ...

    @property
    def name(self) -> str:
        """The model's own name, which clients see unless a setting gives another."""
        ...

    @property
    def source(self) -> str:
        """Where it came from, in words for the manifest."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was read, for hashing."""
        ...

    def has(self, name: str) -> bool:
        """Say whether the tensor is in the checkpoint."""
        ...

    def tensor(self, name: str) -> FloatArray:
        """Read one tensor as float32, dequantized and in Hugging Face's layout.

        Raises:
            ModelError: there is no such tensor, or its bytes can't be read.
        """
        ...

    def tokenizer(self) -> TokenizerFiles:
        """Return the tokenizer and chat template.

        Raises:
            ModelError: the tokenizer is missing, broken, or of a kind that can't be built exactly.
        """
        ...


def check_tensors(
    architecture: Architecture, found: Mapping[str, tuple[int, ...]], *, where: str
) -> None:
    """Refuse a checkpoint whose tensors are not exactly those of its architecture.

    A tensor too many is refused as well (a bias, an adapter, an expert): leaving it out would
    serve another model than the one in the file.

    Args:
        architecture: what the checkpoint says it is.
        found: shape by Hugging Face name.
        where: the file's name for the error.

    Raises:
        ModelError: naming the tensor.
    """
    expected = dict(architecture.tensors())
    for name, shape in expected.items():
        if name not in found:
            msg = f"{where}: tensor {name} is missing; the file is incomplete, get it again."
            raise ModelError(msg)
        if found[name] != shape:
            msg = f"{where}: tensor {name} has shape {list(found[name])}, expected {list(shape)}."
            raise ModelError(msg)
    for name in found:
        # A tied model may carry its output head all the same; it is the embedding once more.
        if name in expected or name == "lm_head.weight" or name.endswith(_DERIVED):
            continue
        msg = (
            f"{where}: tensor {name} is not part of a plain {architecture.family} model; "
            "merge adapters into the weights, or use a model without them."
        )
        raise ModelError(msg)
