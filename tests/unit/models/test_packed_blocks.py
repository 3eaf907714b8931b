from __future__ import annotations

import gguf
import numpy as np
import pytest

from serve_app.errors import ModelError
from serve_app.models.packed_blocks import pack, paired

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape, dtype=np.float32)


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return integers [rows, blocks, 32] and scales [rows, blocks], rows of the filling included."""
    groups, size = packed.shape
    blocks = size // 544
    stored = packed[:, : blocks * 512].reshape(groups, blocks, 8, 16, 4)
    integers = stored.transpose(0, 3, 1, 2, 4).reshape(groups * 16, blocks, 32)
    scales = np.ascontiguousarray(packed[:, blocks * 512 :]).view(np.float16)
    by_row = scales.reshape(groups, blocks, 16).swapaxes(1, 2).reshape(groups * 16, blocks)
    return integers.astype(np.int32) - 128, by_row


def q8_0(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return gguf's integers [rows, blocks, 32] and scales [rows, blocks]."""
    stored = gguf.quantize(weight, Q8_0).reshape(len(weight), -1, 34)
    scales = np.ascontiguousarray(stored[:, :, :2]).view(np.float16)[:, :, 0]
    return stored[:, :, 2:].view(np.int8).astype(np.int32), scales


def restored(packed: np.ndarray) -> np.ndarray:
    integers, scales = unpack(packed)
    values = integers * scales[:, :, None].astype(np.float32)
    return values.reshape(len(values), -1).astype(np.float32)


# Fewer rows than a group, whole groups, and more than are packed at once.
@pytest.mark.parametrize("shape", [(5, 32), (48, 96), (4100, 64)])
def test_a_q8_0_tensor_keeps_its_integers_and_scales(shape: tuple[int, int]) -> None:
    blocks = gguf.quantize(random(*shape), Q8_0)
    weight = gguf.dequantize(blocks, Q8_0)
    packed = pack("w", weight)
    assert packed.shape == (-(-shape[0] // 16), shape[1] // 32 * 544)
    integers, scales = unpack(packed)
    expected_integers, expected_scales = q8_0(weight)
    np.testing.assert_array_equal(integers[: len(weight)], expected_integers)
    np.testing.assert_array_equal(scales[: len(weight)], expected_scales)
    np.testing.assert_array_equal(restored(packed)[: len(weight)], weight)


def test_rounding_takes_q8_0s_scales_and_the_nearest_integers() -> None:
    weight = random(40, 64) * np.logspace(-2, 3, 40, dtype=np.float32)[:, None]
    packed = pack("w", weight)
    _, scales = unpack(packed)
    np.testing.assert_array_equal(scales[:40], q8_0(weight)[1])
    error = np.abs(restored(packed)[:40] - weight).reshape(40, 2, 32).max(axis=2)
    # Where the scale was rounded down, 127 of it fall short of the largest element.
    assert (error <= 0.501 * scales[:40] + 127 * np.spacing(scales[:40]) / 2).all()


def test_no_integer_is_beyond_127_where_the_scale_was_rounded_down() -> None:
    weight = np.ones((256, 32), np.float32) * np.linspace(1, 2, 256, dtype=np.float32)[:, None]
    weight[::2] *= -1
    integers, scales = unpack(pack("w", weight))
    short = scales.astype(np.float32) * 127 < np.abs(weight[:, :1])
    assert short.any()
    assert np.abs(integers).max() == 127


def test_an_integer_lies_where_the_operators_look_for_it() -> None:
    weight = np.zeros((20, 96), np.float32)
    weight[18, 64 + 13] = -127
    packed = pack("w", weight)
    # Group 1, lane 2; block 2, fourth quad, its second byte.
    integer = (2 * 8 + 3) * 64 + 2 * 4 + 1
    scale = 3 * 512 + (2 * 16 + 2) * 2
    assert packed[1, integer] == 128 - 127
    assert packed[1, scale : scale + 2].view(np.float16) == 1
    integers, scales = packed[:, : 3 * 512], packed[:, 3 * 512 :]
    assert (integers != 128).sum() == 1
    assert scales.any(axis=0).sum() == 1


def test_the_last_group_is_filled_up_with_zeros() -> None:
    integers, scales = unpack(pack("w", random(17, 32)))
    assert integers.shape == (32, 1, 32)
    assert integers[16].any()
    assert not integers[17:].any()
    assert not scales[17:].any()


def test_blocks_of_zeros_stay_zeros() -> None:
    weight = random(6, 64)
    weight[2] = 0
    weight[4, :32] = 0
    found = restored(pack("w", weight))
    assert not found[2].any()
    assert not found[4, :32].any()
    assert found[4, 32:].any()


@pytest.mark.parametrize("width", [1, 48, 80])
def test_rows_that_do_not_divide_into_blocks_are_refused(width: int) -> None:
    with pytest.raises(ModelError, match=rf"gate\.weight has rows of {width} elements.*fp32"):
        pack("gate.weight", random(4, width))


def test_gates_and_ups_take_turns_by_groups_of_16() -> None:
    gate, up = random(40, 32), random(40, 32) + 10
    both = paired(gate, up).reshape(3, 2, 16, 32)
    np.testing.assert_array_equal(both[:, 0].reshape(48, 32)[:40], gate)
    np.testing.assert_array_equal(both[:, 1].reshape(48, 32)[:40], up)
    assert not both[2, :, 8:].any()
