"""A checkpoint whose weights take over what its states have too much of, with the same results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from serve_app.models.architecture import Architecture
from serve_app.models.checkpoint import Checkpoint, FloatArray
from serve_app.models.tokenizer_files import TokenizerFiles

__all__ = ["SmoothedCheckpoint"]

# How much of the difference between inputs goes into the weights. Of 0.5 and 0.65, this one gave the
# bundled model the smaller KL.
_ALPHA = 0.65
_LEAST = 1e-5
# By the linear, the projections that it is made of and the norm in front of it.
_BEHIND_NORMS = {
    "self_attn.qkv_proj": (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "input_layernorm",
    ),
    "mlp.gate_up_proj": (("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
}


class SmoothedCheckpoint:
    """Divides a norm's outputs by a factor each, and multiplies the weights behind it by the same.

    A few inputs that are far larger than the others would otherwise leave those no steps of an 8-bit
    integer.

    Source: Xiao et al. 2023 (SmoothQuant), equation 4, each linear's factors scaled to a mean of 1.

    Args:
        checkpoint: the model.
        inputs: see `measure_inputs`.

    Attributes:
        inputs: the same of this one.
    """

    def __init__(self, checkpoint: Checkpoint, inputs: Mapping[str, FloatArray]) -> None:
        self._checkpoint = checkpoint
        self.inputs = dict(inputs)
        # By tensor: what a norm's weights are divided by, and columns of a projection multiplied with.
        self._divisors: dict[str, FloatArray] = {}
        self._factors: dict[str, FloatArray] = {}
        for layer in range(checkpoint.architecture.layers):
            for linear, (projections, norm) in _BEHIND_NORMS.items():
                here = f"model.layers.{layer}"
                weights = [f"{here}.{projection}.weight" for projection in projections]
                factors = self._chosen(inputs[f"{here}.{linear}"], weights)
                self.inputs[f"{here}.{linear}"] = inputs[f"{here}.{linear}"] / factors
                self._divisors[f"{here}.{norm}.weight"] = factors
                self._factors |= dict.fromkeys(weights, factors)

    @property
    def architecture(self) -> Architecture:
        """See `Checkpoint`."""
        return self._checkpoint.architecture

    @property
    def name(self) -> str:
        """See `Checkpoint`."""
        return self._checkpoint.name

    @property
    def source(self) -> str:
        """See `Checkpoint`."""
        return self._checkpoint.source

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Checkpoint`."""
        return self._checkpoint.files

    def has(self, name: str) -> bool:
        """See `Checkpoint`."""
        return self._checkpoint.has(name)

    def tensor(self, name: str) -> FloatArray:
        """Read one tensor, smoothed."""
        tensor = self._checkpoint.tensor(name)
        if (divisors := self._divisors.get(name)) is not None:
            return tensor / divisors
        if (factors := self._factors.get(name)) is not None:
            return tensor * factors
        return tensor

    def tokenizer(self) -> TokenizerFiles:
        """See `Checkpoint`."""
        return self._checkpoint.tokenizer()

    def _chosen(self, inputs: FloatArray, weights: list[str]) -> FloatArray:
        columns = np.max(
            [np.abs(self._checkpoint.tensor(name)).max(axis=0) for name in weights], axis=0
        )
        factors = np.maximum(inputs, _LEAST) ** _ALPHA / np.maximum(columns, _LEAST) ** (1 - _ALPHA)
        factors = np.where((inputs > 0) & (columns > 0), factors, 1)
        # The mean of logarithms, so that a norm's outputs stay in the middle of what fp16 has.
        middle = np.exp(np.log(factors).mean())
        return np.asarray(factors / middle, np.float32)
