"""Matrices in 8-bit blocks, laid out as the operators of `serve_app.kernels` read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import ModelError
from serve_app.models.checkpoint import FloatArray

__all__ = ["BLOCK", "LANES", "pack", "paired"]

BLOCK = 32
LANES = 16
_QUAD = 4  # bytes that one lane of an integer product takes in
_ZERO = 128
# Groups packed at once: the temporaries of a whole vocabulary would take several times its size.
_GROUPS_AT_ONCE = 256


def pack(name: str, weight: FloatArray) -> NDArray[np.uint8]:
    """Round a matrix to 8-bit integers with a half-precision scale per block of 32 inputs.

    These are GGUF's Q8_0 blocks: rounding a Q8_0 tensor gives back its own integers and scales. They
    are stored by groups of 16 outputs, the last of which is filled up with zeros: first the integers,
    [blocks, 8, 16, 4] with 128 added, then the scales, [blocks, 16].

    Args:
        name: the matrix's, for the error.
        weight: [out, in].

    Returns:
        uint8 [groups, blocks * 544].

    Raises:
        ModelError: rows don't divide into blocks.
    """
    rows, width = weight.shape
    if width % BLOCK:
        msg = (
            f"{name} has rows of {width} elements; precision int8 stores blocks of {BLOCK}. "
            "Prepare this model with precision fp32."
        )
        raise ModelError(msg)
    groups, blocks = -(-rows // LANES), width // BLOCK
    packed = np.empty((groups, blocks * (BLOCK + 2) * LANES), np.uint8)
    for start in range(0, groups, _GROUPS_AT_ONCE):
        part = weight[start * LANES : (start + _GROUPS_AT_ONCE) * LANES]
        part = np.pad(part, ((0, -len(part) % LANES), (0, 0)))
        integers, scales = _quantize(part.reshape(len(part), blocks, BLOCK))
        here = packed[start : start + _GROUPS_AT_ONCE]
        by_lane = integers.reshape(len(here), LANES, blocks, BLOCK // _QUAD, _QUAD)
        here[:, : blocks * BLOCK * LANES] = by_lane.transpose(0, 2, 3, 1, 4).reshape(len(here), -1)
        by_block = scales.reshape(len(here), LANES, blocks).transpose(0, 2, 1)
        here[:, blocks * BLOCK * LANES :] = (
            np.ascontiguousarray(by_block).view(np.uint8).reshape(len(here), -1)
        )
    return packed


def paired(gate: FloatArray, up: FloatArray) -> FloatArray:
    """Interleave two matrices by groups: 16 rows of the gate, 16 of the other, and so on.

    Both are filled up with zeros to whole groups.
    """
    rows, width = gate.shape
    both = np.zeros((-(-rows // LANES), 2, LANES, width), np.float32)
    whole = rows // LANES
    for side, matrix in enumerate((gate, up)):
        both[:whole, side] = matrix[: whole * LANES].reshape(whole, LANES, width)
        both[whole:, side, : rows % LANES] = matrix[whole * LANES :]
    return both.reshape(-1, width)


def _quantize(blocks: FloatArray) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    largest = np.abs(blocks).max(axis=2)
    scales = (largest / np.float32(127)).astype(np.float16)
    steps = scales.astype(np.float32)
    # A block of zeros has scale 0; any divisor gives zeros then.
    divisors = np.where(steps == 0, np.float32(1), steps)
    integers = np.clip(np.rint(blocks / divisors[:, :, None]), -127, 127)
    return (integers + _ZERO).astype(np.uint8), scales
