from __future__ import annotations

import numpy as np
import pytest
from random_checkpoint import tiny_architecture

from serve_app.models.architecture import RopeScaling
from serve_app.models.rotary import rotary_tables


def angles(scaling: RopeScaling | None = None) -> np.ndarray:
    """Recover the angle per position from the tables' second row, where none has come round yet."""
    cosine, sine = rotary_tables(
        tiny_architecture(head_dim=64, rope_theta=500_000.0, rope_scaling=scaling)
    )
    result: np.ndarray = np.arctan2(sine[1], cosine[1])
    return result


LLAMA3 = RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_context_length=8192,
)


def test_tables_turn_each_pair_of_a_head_at_its_own_frequency() -> None:
    cosine, sine = rotary_tables(tiny_architecture(head_dim=16, context_length=300))
    assert cosine.shape == sine.shape == (300, 8)
    assert cosine.dtype == sine.dtype == np.float32
    expected = np.outer(np.arange(300), 10_000.0 ** (-np.arange(0, 16, 2) / 16))
    np.testing.assert_allclose(cosine, np.cos(expected), atol=1e-4)
    np.testing.assert_allclose(sine, np.sin(expected), atol=1e-4)


def test_linear_scaling_divides_every_angle() -> None:
    np.testing.assert_allclose(
        angles(RopeScaling(kind="linear", factor=4.0)), angles() / 4, rtol=1e-5
    )


def test_llama3_scaling_keeps_fast_turns_divides_slow_ones_and_blends_between() -> None:
    turns = 8192 * angles() / (2 * np.pi)  # over the original context
    ratio = angles(LLAMA3) / angles()
    assert ratio[turns > 4.01] == pytest.approx(1, rel=1e-5)
    assert ratio[turns < 0.99] == pytest.approx(1 / 8, rel=1e-5)
    between = (turns > 1.01) & (turns < 3.99)
    share = (turns[between] - 1) / 3
    assert between.any()
    assert ratio[between] == pytest.approx(share + (1 - share) / 8, rel=1e-4)
