"""Linear multiplies states in 8-bit blocks by weights in 8-bit blocks, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from operator_run import EPSILON, Linear, random

from serve_app.kernels import library
from serve_app.models.packed_blocks import paired

INPUTS = 96


class Case:
    """A Linear that takes some things along, and numpy's idea of what it computes."""

    def __init__(self, folder: Path, parts: str, width: int = 40) -> None:
        self.norm, self.bias, self.residual, self.swiglu = (
            part in parts for part in ("norm", "bias", "residual", "swiglu")
        )
        self.width = width
        self._matrices = [random(width, INPUTS, seed=seed) for seed in range(1 + self.swiglu)]
        self._norm = random(INPUTS, seed=2) if self.norm else np.zeros(0, np.float32)
        self._bias = random(width, seed=3) if self.bias else np.zeros(0, np.float32)
        weight = paired(*self._matrices) if self.swiglu else self._matrices[0]
        self._linear = Linear(
            folder, weight, width=width, norm=self._norm, bias=self._bias, swiglu=self.swiglu
        )

    def residuals(self, rows: int) -> np.ndarray:
        return random(rows, self.width, seed=4)

    def run(self, states: np.ndarray, residuals: np.ndarray | None = None) -> np.ndarray:
        if residuals is None:
            residuals = self.residuals(len(states))
        return self._linear(states, residuals if self.residual else None)

    def expected(self, states: np.ndarray) -> np.ndarray:
        normed = states.astype(np.float64)
        if self.norm:
            squares = (normed**2).mean(axis=1, keepdims=True)
            normed = normed / np.sqrt(squares + EPSILON) * self._norm
        rounded = rounded_states(normed)
        products = [rounded @ rounded_weights(matrix).T for matrix in self._matrices]
        result = products[0]
        if self.swiglu:
            result = products[0] / (1 + np.exp(-products[0])) * products[1]
        if self.bias:
            result = result + self._bias
        return result + self.residuals(len(states)) if self.residual else result


def rounded_states(states: np.ndarray) -> np.ndarray:
    """Round to 8 bits by blocks of 32, and back."""
    blocks = states.reshape(len(states), INPUTS // 32, 32)
    steps = np.abs(blocks).max(axis=2, keepdims=True) / 127
    return (np.rint(blocks / np.where(steps == 0, 1, steps)) * steps).reshape(states.shape)


def rounded_weights(weight: np.ndarray) -> np.ndarray:
    """Round as Q8_0 with the steps in half precision, and back."""
    blocks = weight.astype(np.float64).reshape(len(weight), -1, 32)
    largest = np.abs(blocks).max(axis=2, keepdims=True).astype(np.float32)
    steps = (largest / np.float32(127)).astype(np.float16).astype(np.float64)
    return (np.clip(np.rint(blocks / steps), -127, 127) * steps).reshape(weight.shape)


PARTS = [
    "alone",
    "norm",
    "bias",
    "residual",
    "swiglu",
    "norm bias",
    "norm swiglu",
    "bias residual",
    "norm bias residual swiglu",
]


@pytest.fixture(scope="module", params=PARTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("linear"), request.param)


@pytest.mark.parametrize("rows", [0, 1, 3, 12, 13, 50])
def test_a_product_is_that_of_rounded_states_and_weights(case: Case, rows: int) -> None:
    states = random(rows, INPUTS, seed=rows)
    product = case.run(states)
    assert product.shape == (rows, case.width)
    np.testing.assert_allclose(product, case.expected(states), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("width", [1, 16, 17, 64, 170])
@pytest.mark.parametrize("parts", ["bias residual", "bias residual swiglu"])
def test_a_width_need_not_fill_its_groups(tmp_path: Path, parts: str, width: int) -> None:
    case = Case(tmp_path, parts, width)
    states = random(13, INPUTS)
    np.testing.assert_allclose(case.run(states), case.expected(states), rtol=1e-5, atol=1e-4)


def test_a_row_has_the_same_bits_alone_and_in_any_batch(case: Case, level: str) -> None:
    states, residuals = random(50, INPUTS), case.residuals(50)
    alone = np.concatenate(
        [case.run(states[row : row + 1], residuals[row : row + 1]) for row in range(50)]
    )
    for rows in (*range(2, 26), 50):
        np.testing.assert_array_equal(case.run(states[:rows], residuals[:rows]), alone[:rows])
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(case.run(states[order], residuals[order]), alone[order])


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 12, 13, 50])
def test_all_instructions_give_the_same_bits(case: Case, rows: int, level: str) -> None:
    states = random(rows, INPUTS)
    states[0] *= np.logspace(-40, 30, INPUTS, dtype=np.float32)
    product = case.run(states)
    library.use_level("plain")
    np.testing.assert_array_equal(product, case.run(states))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_itself_alone(case: Case, value: float, level: str) -> None:
    states = random(13, INPUTS)
    clean = case.run(states)
    states[4, INPUTS - 1] = value
    product = case.run(states)
    assert not np.isfinite(product[4]).any()
    others = np.arange(13) != 4
    np.testing.assert_array_equal(product[others], clean[others])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_products_are_exact(tmp_path: Path, sign: int, level: str) -> None:
    # Sums of pairs of the largest 8-bit products overflow 16 bits on some vector units.
    linear = Linear(tmp_path, np.full((16, 64), 127 * sign, np.float32))
    states = np.full((5, 64), 127, np.float32)
    np.testing.assert_array_equal(linear(states), np.full((5, 16), 127 * 127 * 64 * sign))


def test_rows_of_zeros_and_of_the_smallest_numbers_give_nothing(tmp_path: Path, level: str) -> None:
    linear = Linear(tmp_path, random(16, 64))
    states = random(3, 64) * np.array([[0], [1e-42], [1]], np.float32)
    product = linear(states)
    np.testing.assert_array_equal(product[0], np.zeros(16))
    np.testing.assert_allclose(product[1], np.zeros(16), atol=1e-37)
    assert np.abs(product[2]).min() > 0


FITTING: dict[str, Any] = {
    "states": (3, 64),
    "weight": (40, 64),
    "norm": 64,
    "bias": 40,
    "residual": (3, 40),
}


@pytest.mark.parametrize(
    "changes",
    [
        {"states": (3, 80), "norm": 0},
        {"states": (3, 96), "norm": 0},
        {"states": (3, 64, 1)},
        {"states": (3,)},
        {"weight": (24, 64)},
        {"weight": (40, 96)},
        {"norm": 32},
        {"bias": 48},
        {"residual": (1, 40)},
        {"residual": (3, 64)},
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    def run(sizes: dict[str, Any]) -> np.ndarray:
        linear = Linear(
            tmp_path,
            random(*sizes["weight"]),
            width=40,
            norm=random(sizes["norm"]),
            bias=random(sizes["bias"]),
            rank=len(sizes["states"]),
        )
        return linear(random(*sizes["states"]), random(*sizes["residual"]))

    assert run(FITTING).shape == (3, 40)
    with pytest.raises(InvalidArgument, match=r"parley\.Linear: the tensors don't fit"):
        run(FITTING | changes)
