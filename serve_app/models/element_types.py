"""The floating-point types that weights, states and caches may have."""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np

__all__ = ["FloatName", "float_dtype"]

FloatName = Literal["bfloat16", "float16", "float32"]


def float_dtype(name: FloatName) -> np.dtype[Any]:
    """Return numpy's type of a name; bfloat16 comes from ml_dtypes, as numpy has none."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
