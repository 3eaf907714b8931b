"""The rotary embedding's tables: cosine and sine of every position, scaled for long contexts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from serve_app.models.architecture import Architecture, RopeScaling

__all__ = ["rotary_tables"]

FloatArray = NDArray[np.float32]


def rotary_tables(architecture: Architecture) -> tuple[FloatArray, FloatArray]:
    """Return (cosine, sine), each float32 [context_length, head_dim / 2].

    Angles are computed in single precision: that is how these models were trained, and at position
    8000 a more exact angle would differ from theirs by up to 5e-4.

    Source: Su et al. 2021 (RoFormer), with the two halves of a head rotated against each other.
    """
    steps = np.arange(0, architecture.head_dim, 2, dtype=np.float32) / np.float32(
        architecture.head_dim
    )
    frequencies = np.float32(1) / np.float32(architecture.rope_theta) ** steps
    if architecture.rope_scaling is not None:
        frequencies = _scaled(frequencies, architecture.rope_scaling)
    positions = np.arange(architecture.context_length, dtype=np.float32)
    angles = np.outer(positions, frequencies)
    return np.cos(angles), np.sin(angles)


def _scaled(frequencies: FloatArray, scaling: RopeScaling) -> FloatArray:
    """Stretch [head_dim / 2] frequencies for a longer context.

    Sources: Chen et al. 2023 (position interpolation) for "linear"; Meta's Llama 3.1 reference code
    for "llama3".
    """
    slow = frequencies / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return slow
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_context_length
    if low is None or high is None or original is None:
        msg = "RopeScaling checks the parameters of llama3 when it is made"
        raise AssertionError(msg)
    # Turns that a frequency makes over the original context: few mean a low frequency.
    turns = np.float32(original) * frequencies / np.float32(2 * math.pi)
    keep = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)
    scaled: FloatArray = (1 - keep) * slow + keep * frequencies
    return scaled
