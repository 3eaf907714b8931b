from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from decoder_run import DecoderRun, open_session
from onnx.reference import ReferenceEvaluator
from random_checkpoint import RandomCheckpoint, tiny_architecture

from serve_app.errors import ModelError
from serve_app.models.decoder_graph import build_decoder
from serve_app.models.decoder_interface import (
    DATA_FILE,
    GRAPH_FILE,
    INPUT_IDS,
    LOGIT_ROWS,
    LOGITS,
    POSITIONS,
    SEQLENS_K,
    SLOTS,
    TOTAL_SEQUENCE_LENGTH,
    WRITE_INDICES,
    DecoderInterface,
    Form,
)
from serve_app.models.precision.named import states_of

QWEN3 = {"family": "qwen3", "qk_norm": True, "head_dim": 32}
QWEN2 = {"family": "qwen2", "attention_bias": True, "tied_embeddings": True}
MISTRAL = {"family": "mistral", "sliding_window": 8}
FAMILIES = pytest.mark.parametrize(
    "changes", [{}, MISTRAL, QWEN2, QWEN3], ids=["llama", "mistral", "qwen2", "qwen3"]
)
STANDARD = {"form": "standard"}
NATIVE = {"form": "native", "precision": "int8"}
TOKENS = list(range(3, 30))
CACHE_LENGTH = 32  # tokens of a slot in the standard form
W8A8 = ("int8-w8a8", "fp8-w8a8")
RUNNABLE = [("cpu", "fp32"), ("cpu", "int8"), ("native", "int8")]
RUNNABLE += [("standard", name) for name in ("fp32", "fp16", "int8", "fp8", *W8A8)]
KINDS = pytest.mark.parametrize(("form", "precision"), [*RUNNABLE, ("standard", "bf16")])


def build(
    directory: Path, precision: str = "fp32", form: Form = "cpu", **changes: Any
) -> RandomCheckpoint:
    checkpoint = RandomCheckpoint(tiny_architecture(**changes))
    build_decoder(
        checkpoint,
        form=form,
        precision=precision,  # type: ignore[arg-type]
        directory=directory,
        cache_length=CACHE_LENGTH if form == "standard" else None,
    )
    return checkpoint


def interface_of(
    checkpoint: RandomCheckpoint, form: Form, precision: str = "fp32"
) -> DecoderInterface:
    if form != "standard":
        return DecoderInterface.of(checkpoint.architecture, form)
    dtype = states_of(precision, form)  # type: ignore[arg-type]
    return DecoderInterface.of(
        checkpoint.architecture, form, dtype=dtype, cache_length=CACHE_LENGTH
    )


def run_of(
    folder: Path, checkpoint: RandomCheckpoint, form: Form, precision: str = "fp32", **sizes: int
) -> DecoderRun:
    interface = interface_of(checkpoint, form, precision)
    return DecoderRun(open_session(folder, form), interface, **sizes)


@KINDS
@FAMILIES
def test_graph_passes_the_full_check_and_strict_shape_inference(
    tmp_path: Path, form: Form, precision: str, changes: dict[str, Any]
) -> None:
    build(tmp_path, precision, form, **changes)
    onnx.checker.check_model(tmp_path / GRAPH_FILE, full_check=True)
    model = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_inputs_and_outputs_of_the_cpu_form_are_those_of_the_interface(tmp_path: Path) -> None:
    checkpoint = build(tmp_path)
    interface = DecoderInterface.of(checkpoint.architecture)
    session = open_session(tmp_path)
    found = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    cache = ("tensor(float)", ["batch", 2, "max_len", 16])
    assert found == {
        INPUT_IDS: ("tensor(int64)", ["batch", "sequence"]),
        SEQLENS_K: ("tensor(int32)", ["batch"]),
        TOTAL_SEQUENCE_LENGTH: ("tensor(int32)", []),
        LOGIT_ROWS: ("tensor(int64)", ["rows"]),
        **{past: cache for past, _ in interface.cache_names},
    }
    found = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    assert found == {
        LOGITS: ("tensor(float)", ["rows", 300]),
        **{present: cache for _, present in interface.cache_names},
    }


def test_inputs_and_outputs_of_the_native_form_are_those_of_the_interface(tmp_path: Path) -> None:
    checkpoint = build(tmp_path, "int8", "native")
    interface = DecoderInterface.of(checkpoint.architecture, "native")
    session = open_session(tmp_path, "native")
    found = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    cache = ("tensor(float16)", ["slots", 2, "max_len", 16])
    assert interface.cache_dtype == "float16"
    assert found == {
        INPUT_IDS: ("tensor(int64)", ["tokens"]),
        SLOTS: ("tensor(int32)", ["tokens"]),
        POSITIONS: ("tensor(int32)", ["tokens"]),
        LOGIT_ROWS: ("tensor(int64)", ["rows"]),
        **{past: cache for past, _ in interface.cache_names},
    }
    found = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    assert found == {LOGITS: ("tensor(float)", ["rows", 300])}


@pytest.mark.parametrize(
    ("precision", "dtype", "element"),
    [
        ("fp32", "float32", "float"),
        ("fp16", "float16", "float16"),
        ("bf16", "bfloat16", "bfloat16"),
    ],
)
def test_inputs_and_outputs_of_the_standard_form_are_those_of_the_interface(
    tmp_path: Path, precision: str, dtype: str, element: str
) -> None:
    checkpoint = build(tmp_path, precision, "standard")
    interface = interface_of(checkpoint, "standard", precision)
    assert (interface.cache_dtype, interface.cache_length) == (dtype, CACHE_LENGTH)
    assert interface.context_length == CACHE_LENGTH
    assert interface.token_bytes == 2 * 2 * 2 * 16 * (4 if precision == "fp32" else 2)
    graph = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False).graph
    cache = (f"tensor({element})", ["batch", 2, CACHE_LENGTH, 16])
    assert signature(graph.input) == {
        INPUT_IDS: ("tensor(int64)", ["batch", "sequence"]),
        WRITE_INDICES: ("tensor(int64)", ["batch"]),
        LOGIT_ROWS: ("tensor(int64)", ["rows"]),
        **{past: cache for past, _ in interface.cache_names},
    }
    assert signature(graph.output) == {
        LOGITS: ("tensor(float)", ["rows", 300]),
        **{present: cache for _, present in interface.cache_names},
    }


def signature(values: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[str, list[int | str]]]:
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        found[value.name] = (f"tensor({element})", dims)
    return found


@FAMILIES
def test_the_standard_form_is_made_of_onnx_operators_alone(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    build(tmp_path, form="standard", **changes)
    model = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(attention) == 2
    for node in attention:
        assert len(node.input) == 4  # queries, keys, values and a mask
        assert not node.attribute


@FAMILIES
def test_batches_of_the_standard_form_may_go_on_from_different_lengths(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    checkpoint = build(tmp_path, form="standard", **changes)
    run = run_of(tmp_path, checkpoint, "standard", slots=3, max_len=CACHE_LENGTH)
    alone = run_of(tmp_path, checkpoint, "standard", slots=3, max_len=CACHE_LENGTH)
    for slot, length in enumerate((9, 2, 14)):
        for each in (run, alone):
            each.step([list(range(50, 50 + length))], slot=slot, rows=[])
    chunks = [[7, 8, 9], [1, 2, 3], [4, 5, 6]]
    expected = np.concatenate([alone.step([chunk], slot=slot) for slot, chunk in enumerate(chunks)])
    assert expected.std() > 0.5
    np.testing.assert_allclose(run.step(chunks), expected, rtol=0, atol=1e-5)


@FAMILIES
def test_fp16_stays_close_to_fp32(tmp_path: Path, changes: dict[str, Any]) -> None:
    exact, rounded = (standard_logits(tmp_path, name, changes) for name in ("fp32", "fp16"))
    assert 0 < (rounded - exact).std() / exact.std() < 0.005


@FAMILIES
@pytest.mark.parametrize(
    ("precision", "distance"),
    [("int8", 0.04), ("fp8", 0.12), ("int8-w8a8", 0.06), ("fp8-w8a8", 0.16)],
)
def test_weights_in_8_bits_stay_close_to_fp32(
    tmp_path: Path, precision: str, distance: float, changes: dict[str, Any]
) -> None:
    exact, rounded = (standard_logits(tmp_path, name, changes) for name in ("fp32", precision))
    assert distance / 10 < (rounded - exact).std() / exact.std() < distance


@FAMILIES
@pytest.mark.parametrize(
    ("precision", "element"),
    [
        ("int8", onnx.TensorProto.INT8),
        ("fp8", onnx.TensorProto.FLOAT8E4M3FN),
        ("int8-w8a8", onnx.TensorProto.INT8),
        ("fp8-w8a8", onnx.TensorProto.FLOAT8E4M3FN),
    ],
)
def test_every_projection_of_the_standard_form_is_stored_in_8_bits(
    tmp_path: Path, precision: str, element: int, changes: dict[str, Any]
) -> None:
    checkpoint = build(tmp_path, precision, "standard", **changes)
    graph = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    restored = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    untied = not checkpoint.architecture.tied_embeddings
    assert len(products) == 4 * checkpoint.architecture.layers + untied
    for product in products:
        weight, scales = (stored[name] for name in restored[product.input[1]].input)
        assert weight.data_type == element
        assert scales.data_type == onnx.TensorProto.FLOAT16
        assert list(scales.dims) == [weight.dims[1]]  # [in, out]: one for every output


@FAMILIES
@pytest.mark.parametrize(
    ("precision", "element", "exact"),
    [
        ("int8-w8a8", onnx.TensorProto.INT8, {"down_proj"}),
        ("fp8-w8a8", onnx.TensorProto.FLOAT8E4M3FN, set()),
    ],
)
def test_inputs_of_the_layers_products_are_rounded_to_8_bits_by_a_constant_scale(
    tmp_path: Path, precision: str, element: int, exact: set[str], changes: dict[str, Any]
) -> None:
    build(tmp_path, precision, "standard", **changes)
    graph = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    left = set()
    for product in (node for node in graph.node if node.op_type == "MatMul"):
        restored = made.get(product.input[0])
        if restored is None or restored.op_type != "DequantizeLinear":
            left.add(product.name.removesuffix(".product").rpartition(".")[2])
            continue
        rounded = made[restored.input[0]]
        assert rounded.op_type == "QuantizeLinear"
        scale, zero = (stored[name] for name in rounded.input[1:])
        assert zero.data_type == element
        assert (list(scale.dims), scale.data_type) == ([], onnx.TensorProto.FLOAT16)
        assert restored.input[1] == rounded.input[1]
    assert left - {"float16"} == exact  # the output head is logits.float16


def standard_logits(folder: Path, precision: str, changes: dict[str, Any]) -> np.ndarray:
    (folder / precision).mkdir()
    checkpoint = build(folder / precision, precision, "standard", **changes)
    run = run_of(folder / precision, checkpoint, "standard", precision, slots=1, max_len=32)
    run.step([TOKENS[:7]], rows=[])
    return np.concatenate([run.step([TOKENS[7:-1]]), run.step([TOKENS[-1:]])])


@FAMILIES
def test_bf16_stays_close_to_fp32(tmp_path: Path, changes: dict[str, Any]) -> None:
    # ONNX Runtime's CPU kernels have no bfloat16; ONNX's own reference does what the graph says.
    exact = standard_logits(tmp_path, "fp32", changes)
    checkpoint = build(tmp_path, "bf16", "standard", **changes)
    interface = interface_of(checkpoint, "standard", "bf16")
    shape = interface.cache_shape(1, CACHE_LENGTH)
    names = [LOGITS, *(present for _, present in interface.cache_names)]
    reference = ReferenceEvaluator(str(tmp_path / GRAPH_FILE))
    cache = [np.zeros(shape, interface.cache_dtype) for _ in names[1:]]
    logits = []
    for start, end in ((0, 7), (7, len(TOKENS) - 1), (len(TOKENS) - 1, len(TOKENS))):
        found, *cache = reference.run(
            names,
            {
                INPUT_IDS: np.array([TOKENS[start:end]]),
                WRITE_INDICES: np.array([start]),
                LOGIT_ROWS: np.arange(end - start),
                **{
                    past: held for (past, _), held in zip(interface.cache_names, cache, strict=True)
                },
            },
        )
        logits.append(found)
    assert {held.dtype for held in cache} == {np.dtype("bfloat16")}
    rounded = np.concatenate(logits[1:])
    assert 0 < (rounded - exact).std() / exact.std() < 0.04


@KINDS
def test_tied_embeddings_are_stored_once(tmp_path: Path, form: Form, precision: str) -> None:
    sizes = {}
    for tied in (True, False):
        folder = tmp_path / str(tied)
        folder.mkdir()
        build(folder, precision, form, tied_embeddings=tied, vocab_size=3000)
        sizes[tied] = (folder / DATA_FILE).stat().st_size
    widths: dict[str, float] = {"fp32": 4, "fp16": 2, "bf16": 2}
    bytes_per_weight = widths.get(precision, 1)
    if precision == "int8" and form != "standard":
        bytes_per_weight += (2 if form == "native" else 4) / 32  # a scale for every block
    table = 3000 * 64 * bytes_per_weight
    assert sizes[False] - sizes[True] == pytest.approx(table, rel=0.05)


@FAMILIES
@pytest.mark.parametrize("form", ["cpu", "native"])
def test_int8_graph_stays_close_to_fp32(
    tmp_path: Path, form: Form, changes: dict[str, Any]
) -> None:
    logits = []
    for name, precision, used in (("exact", "fp32", "cpu"), ("rounded", "int8", form)):
        folder = tmp_path / name
        folder.mkdir()
        checkpoint = build(folder, precision, used, **changes)
        run = run_of(folder, checkpoint, used, slots=1, max_len=32)
        logits.append(run.step([list(range(3, 30))]))
    exact, rounded = logits
    assert 0 < (rounded - exact).std() / exact.std() < 0.06


@pytest.mark.parametrize(("form", "precision"), RUNNABLE)
def test_no_wanted_rows_are_fine_in_every_precision(
    tmp_path: Path, form: Form, precision: str
) -> None:
    checkpoint = build(tmp_path, precision, form)
    run = run_of(tmp_path, checkpoint, form, precision, slots=2, max_len=16)
    assert run.step([[1, 2, 3], [4, 5, 6]], rows=[]).shape == (0, 300)


@KINDS
def test_building_twice_gives_the_same_bytes(tmp_path: Path, form: Form, precision: str) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build(tmp_path / name, precision, form, **QWEN3)
        contents.append([(tmp_path / name / file).read_bytes() for file in (GRAPH_FILE, DATA_FILE)])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("form", "precision"),
    [("cpu", "fp32"), ("native", "int8"), ("standard", "bf16"), ("standard", "fp8")],
)
def test_memory_holds_a_few_tensors_and_never_the_model(
    tmp_path: Path, form: Form, precision: str
) -> None:
    architecture = tiny_architecture(hidden=256, intermediate=768, layers=24, tied_embeddings=True)
    sizes = [4 * math.prod(shape) for _, shape in architecture.tensors()]
    tracemalloc.start()
    try:
        build_decoder(
            RandomCheckpoint(architecture),
            form=form,
            precision=precision,  # type: ignore[arg-type]
            directory=tmp_path,
            cache_length=CACHE_LENGTH if form == "standard" else None,
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Gate and up, joined, and the joined one transposed or rounded.
    assert peak < 10 * max(sizes) < sum(sizes) / 4


@pytest.mark.parametrize("form", ["cpu", "native"])
def test_progress_counts_every_tensor(tmp_path: Path, form: Form) -> None:
    seen: list[tuple[str, int, int]] = []
    checkpoint = RandomCheckpoint(tiny_architecture(**QWEN2))
    build_decoder(
        checkpoint,
        form=form,
        precision="int8",
        directory=tmp_path,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    total = len(list(checkpoint.architecture.tensors()))
    assert seen == [("writing weights", done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(
    ("arguments", "changes", "fault"),
    [
        ({"form": "gpu"}, {}, "Unknown form 'gpu'; choose one of cpu, native, standard"),
        (
            {"precision": "int3"},
            {},
            "Unknown precision 'int3'; choose one of fp32, int8, fp16, bf16, fp8",
        ),
        ({"precision": "bf16"}, {}, "cpu form has no bf16; .*fp32 or int8, or the standard form"),
        (STANDARD, {}, "cache length .* at most the context of 128 tokens, not None"),
        ({**STANDARD, "cache_length": 129}, {}, "at most the context of 128 tokens, not 129"),
        ({}, {"head_dim": 24}, "multiple of 16 elements, not 24"),
        ({"precision": "int8"}, {"intermediate": 80}, r"down_proj.*rows of 80 elements.*fp32"),
        ({"form": "native"}, {}, "choose precision int8, or the cpu or standard form"),
        (NATIVE, {"head_dim": 24}, "multiple of 16 elements up to 1024, not 24"),
        (NATIVE, {"head_dim": 1040}, "multiple of 16 elements up to 1024, not 1040"),
        (NATIVE, {"intermediate": 80}, r"down_proj.*rows of 80 elements.*fp32"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    tmp_path: Path, arguments: dict[str, Any], changes: dict[str, Any], fault: str
) -> None:
    checkpoint = RandomCheckpoint(tiny_architecture(**changes))
    options = {"form": "cpu", "precision": "fp32", **arguments}
    with pytest.raises(ModelError, match=fault):
        build_decoder(
            checkpoint,
            form=options["form"],
            precision=options["precision"],
            directory=tmp_path,
            cache_length=options.get("cache_length"),
        )
