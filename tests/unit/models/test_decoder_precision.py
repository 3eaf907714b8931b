from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnxruntime as ort
import pytest

from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.precision.base import Precision
from serve_app.models.precision.floating_point import FloatingPoint
from serve_app.models.precision.int8 import Int8Blocks
from serve_app.models.precision.quantized import QuantizedWeights

Write = Callable[[GraphBuilder], None]


def run(directory: Path, write: Write, **feeds: np.ndarray) -> list[np.ndarray]:
    with GraphBuilder(directory / "part.onnx", directory / "part.data") as graph:
        write(graph)
        graph.save()
    session = ort.InferenceSession(directory / "part.onnx", providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape, dtype=np.float32)


def q8_0(weight: np.ndarray) -> np.ndarray:
    """Round as a GGUF file does, and back."""
    kind = gguf.GGMLQuantizationType.Q8_0
    restored: np.ndarray = gguf.dequantize(gguf.quantize(weight, kind), kind)
    return restored


def looked_up(directory: Path, precision: Precision, weight: np.ndarray) -> np.ndarray:
    def write(graph: GraphBuilder) -> None:
        graph.input("indices", "int64", ["n"])
        graph.output("rows", "float32", ["n", weight.shape[1]])
        precision.look_up(graph, "rows", precision.table(graph, "table", weight), "indices")

    return run(directory, write, indices=np.arange(len(weight)))[0]


@pytest.mark.parametrize("precision", [FloatingPoint("float32"), Int8Blocks()])
@pytest.mark.parametrize("shape", [(40, 64), (1, 64), (0, 64)])
def test_linear_multiplies_by_the_weight_and_adds_the_bias(
    tmp_path: Path, precision: Precision, shape: tuple[int, ...]
) -> None:
    weight, bias, states = random(96, 64), random(96), random(*shape)

    def write(graph: GraphBuilder) -> None:
        graph.input("states", "float32", ["rows", 64])
        graph.output("product", "float32", ["rows", 96])
        precision.linear(graph, "product", "states", weight, bias)

    (product,) = run(tmp_path, write, states=states)
    # 64 rounded terms of about 1: 8 bits leave an error well under a tenth.
    np.testing.assert_allclose(
        product,
        states @ weight.T + bias,
        atol=1e-4 if isinstance(precision, FloatingPoint) else 0.4,
    )


def test_fp32_table_gives_back_its_rows(tmp_path: Path) -> None:
    weight = random(50, 48)
    np.testing.assert_array_equal(looked_up(tmp_path, FloatingPoint("float32"), weight), weight)


def test_int8_rounds_to_half_a_step_of_each_block(tmp_path: Path) -> None:
    weight = random(50, 64) * np.logspace(-6, 3, 50, dtype=np.float32)[:, None]
    error = np.abs(looked_up(tmp_path, Int8Blocks(), weight) - weight).reshape(50, 2, 32)
    step = np.abs(weight).reshape(50, 2, 32).max(axis=2) / 127
    assert (error.max(axis=2) <= 0.501 * step).all()


def test_int8_loses_nothing_on_weights_that_were_q8_0(tmp_path: Path) -> None:
    weight = q8_0(random(50, 64))
    np.testing.assert_allclose(looked_up(tmp_path, Int8Blocks(), weight), weight, rtol=3e-7)


def test_int8_keeps_blocks_of_zeros(tmp_path: Path) -> None:
    weight = random(6, 64)
    weight[2] = 0
    weight[4, :32] = 0
    restored = looked_up(tmp_path, Int8Blocks(), weight)
    assert not restored[2].any()
    assert not restored[4, :32].any()
    assert restored[4, 32:].any()


def test_int8_quantizes_a_large_table_in_parts_that_fit_together(tmp_path: Path) -> None:
    weight = q8_0(random(9001, 32))
    np.testing.assert_allclose(looked_up(tmp_path, Int8Blocks(), weight), weight, rtol=3e-7)


@pytest.mark.parametrize("precision", [FloatingPoint("float32"), Int8Blocks()])
@pytest.mark.parametrize("size", [70, 3])  # in the data file, and small enough for the graph
def test_table_projects_with_the_rows_that_it_looks_up(
    tmp_path: Path, precision: Precision, size: int
) -> None:
    weight, states = q8_0(random(size, 64)), random(3, 64)

    def write(graph: GraphBuilder) -> None:
        graph.input("indices", "int64", ["n"])
        graph.input("states", "float32", ["m", 64])
        graph.output("rows", "float32", ["n", 64])
        graph.output("product", "float32", ["m", size])
        table = precision.table(graph, "table", weight)
        precision.look_up(graph, "rows", table, "indices")
        precision.project(graph, "product", table, "states")

    rows, product = run(tmp_path, write, indices=np.arange(size), states=states)
    np.testing.assert_allclose(rows, weight, rtol=3e-7)
    np.testing.assert_allclose(
        product, states @ weight.T, atol=1e-4 if isinstance(precision, FloatingPoint) else 0.4
    )


@pytest.mark.parametrize("level", [-1.0, 1.0])
def test_int8_products_do_not_saturate(tmp_path: Path, level: float) -> None:
    # Sums of pairs of the largest 8-bit products overflow 16 bits on some vector units.
    weight, states = np.full((8, 64), level, np.float32), np.ones((2, 64), np.float32)

    def write(graph: GraphBuilder) -> None:
        graph.input("states", "float32", [2, 64])
        graph.output("product", "float32", [2, 8])
        Int8Blocks().linear(graph, "product", "states", weight)

    (product,) = run(tmp_path, write, states=states)
    np.testing.assert_allclose(product, level * 64, rtol=1e-3)


QUANTIZED = pytest.mark.parametrize("precision", [QuantizedWeights.int8(), QuantizedWeights.fp8()])


def multiplied(directory: Path, precision: QuantizedWeights, weight: np.ndarray) -> np.ndarray:
    """Multiply every unit vector by a weight in 8 bits, which gives back the weight."""

    def write(graph: GraphBuilder) -> None:
        graph.input("states", "float16", ["rows", weight.shape[1]])
        graph.output("product", "float16", ["rows", len(weight)])
        precision.linear(graph, "product", "states", weight)

    (product,) = run(directory, write, states=np.eye(weight.shape[1], dtype=np.float16))
    return product.T.astype(np.float32)


def test_explicit_int8_rounds_to_half_a_step_of_each_output(tmp_path: Path) -> None:
    weight = random(50, 64) * np.logspace(-1, 1, 50, dtype=np.float32)[:, None]
    error = np.abs(multiplied(tmp_path, QuantizedWeights.int8(), weight) - weight)
    largest = np.abs(weight).max(axis=1)
    # And to fp16: of the scale, and of the product.
    assert (error.max(axis=1) <= largest * (0.505 / 127 + 2**-10)).all()
    assert (error.max(axis=1) >= largest * 0.3 / 127).all()


def test_explicit_fp8_rounds_to_a_sixteenth_of_each_weight(tmp_path: Path) -> None:
    weight = random(50, 64) * np.logspace(-1, 1, 50, dtype=np.float32)[:, None]
    error = np.abs(multiplied(tmp_path, QuantizedWeights.fp8(), weight) - weight)
    largest = np.abs(weight).max(axis=1, keepdims=True)
    # Half of a step of 3 bits of mantissa; the smallest weights have steps of 2**-9 of a scale.
    step = np.maximum(np.abs(weight) / 16, largest / 448 * 2**-10)
    assert (error <= step + largest * 2**-10).all()
    assert error.max() > 0


@QUANTIZED
def test_explicit_quantization_keeps_outputs_of_zeros_and_very_small_ones(
    tmp_path: Path, precision: QuantizedWeights
) -> None:
    weight = random(6, 32)
    weight[2] = 0
    weight[4] *= 1e-6
    restored = multiplied(tmp_path, precision, weight)
    assert not restored[2].any()
    np.testing.assert_allclose(restored[4], weight[4], atol=7e-5)
    assert np.isfinite(restored).all()


@QUANTIZED
def test_explicit_quantization_adds_the_bias(tmp_path: Path, precision: QuantizedWeights) -> None:
    weight, bias, states = random(96, 64), random(96), random(40, 64).astype(np.float16)

    def write(graph: GraphBuilder) -> None:
        graph.input("states", "float16", ["rows", 64])
        graph.output("product", "float16", ["rows", 96])
        precision.linear(graph, "product", "states", weight, bias)

    (product,) = run(tmp_path, write, states=states)
    expected = states.astype(np.float32) @ weight.T + bias
    assert np.abs(product - expected).std() / expected.std() < 0.04


@QUANTIZED
def test_explicit_quantization_of_a_large_matrix_is_done_in_parts_that_fit_together(
    tmp_path: Path, precision: QuantizedWeights
) -> None:
    weight = np.tile(random(50, 16), (180, 1))
    restored = multiplied(tmp_path, precision, weight)
    np.testing.assert_array_equal(restored, np.tile(restored[:50], (180, 1)))


def test_two_weights_cannot_share_a_name(tmp_path: Path) -> None:
    with GraphBuilder(tmp_path / "part.onnx", tmp_path / "part.data") as graph:
        graph.weight("table", random(40, 40))
        with pytest.raises(ValueError, match="table"):
            graph.weight("table", random(40, 40))
