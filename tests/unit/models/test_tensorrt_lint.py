"""The lint names every node that TensorRT's parser refuses, and lets the standard form pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from random_checkpoint import RandomCheckpoint, tiny_architecture

from serve_app.errors import ModelError
from serve_app.models.decoder_graph import build_decoder
from serve_app.models.decoder_interface import GRAPH_FILE, Form
from serve_app.models.precision.base import PrecisionName
from serve_app.models.tensorrt_lint import Offence, lint_graph
from serve_app.models.tensorrt_operators import EXTENSIONS, OPERATORS, RULES

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Inputs = Mapping[str, tuple[int, Sequence[int | str]]]

HEADS: Inputs = {
    "q": (FLOAT, ["batch", 4, "new", 16]),
    "k": (FLOAT, ["batch", 2, 64, 16]),
    "v": (FLOAT, ["batch", 2, 64, 16]),
    "mask": (TensorProto.BOOL, ["batch", 1, "new", 64]),
}
CACHE: Inputs = {
    "past": (FLOAT, ["batch", 2, 64, 16]),
    "update": (FLOAT, ["batch", 2, "new", 16]),
    "starts": (INT64, ["batch"]),
}
ROWS: Inputs = {"x": (FLOAT, ["rows", 16])}


def node(operator: str, inputs: str, outputs: str = "y", **attributes: Any) -> NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, outputs.split(), name=f"the {operator}", **attributes)


def offences_of(
    folder: Path,
    nodes: Sequence[NodeProto],
    inputs: Inputs,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 24,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> list[Offence]:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions)
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return lint_graph(path)


ATTENTION: dict[str, tuple[NodeProto, Inputs, str]] = {
    "softcap": (node("Attention", "q k v mask", softcap=30.0), HEADS, "softcap is 30.0"),
    "three-dimensions": (
        node("Attention", "q k v", q_num_heads=4, kv_num_heads=2),
        {
            name: (FLOAT, ["batch", "new", width])
            for name, width in (("q", 64), ("k", 32), ("v", 32))
        },
        "its Q has 3 dimensions",
    ),
    "flat-mask": (
        node("Attention", "q k v mask"),
        {**HEADS, "mask": (TensorProto.BOOL, ["new", 64])},
        "its attn_mask has 2 dimensions",
    ),
    "causal": (
        node("Attention", "q k v", is_causal=1),
        HEADS,
        "is_causal is aligned with the upper left corner",
    ),
    "causal-and-masked": (
        node("Attention", "q q q mask", is_causal=1),
        HEADS,
        "it has both is_causal and attn_mask",
    ),
    "past": (
        node("Attention", "q update update - past past", "y present_key present_value"),
        {**HEADS, **CACHE},
        "it has the input past_key",
    ),
    "presents": (
        node("Attention", "q k v - - -", "y present_key present_value"),
        HEADS,
        "it has more outputs: present_key, present_value",
    ),
    "lengths": (
        node("Attention", "q k v - - - starts"),
        {**HEADS, **CACHE},
        "it has the input nonpad_kv_seqlen",
    ),
    "softmax-precision": (
        node("Attention", "q k v", softmax_precision=1),
        HEADS,
        "it has the attribute softmax_precision",
    ),
}
OTHERS: dict[str, tuple[NodeProto, Inputs, dict[str, np.ndarray], str]] = {
    "unknown": (node("Det", "x"), {"x": (FLOAT, [4, 4])}, {}, "the parser has no such operator"),
    "dynamic-quantization": (
        node("DynamicQuantizeLinear", "x", "y scale zero"),
        ROWS,
        {},
        "the parser has no such operator",
    ),
    "integer-matmul": (
        node("MatMulInteger", "x w"),
        {"x": (TensorProto.INT8, ["rows", 16])},
        {"w": np.ones((16, 8), np.int8)},
        "the parser has no such operator",
    ),
    "integers-in-matmul": (
        node("MatMul", "x w"),
        {"x": (TensorProto.INT32, ["rows", 16])},
        {"w": np.ones((16, 8), np.int32)},
        "its input x is INT32",
    ),
    "scatter-in-a-ring": (
        node("TensorScatter", "past update starts", mode="circular", axis=-2),
        CACHE,
        {},
        "its mode is circular",
    ),
    "scatter-along-heads": (
        node("TensorScatter", "past update starts", axis=1),
        {**CACHE, "update": (FLOAT, ["batch", 1, 64, 16])},
        {},
        "its axis is 1",
    ),
    "scatter-in-three-dimensions": (
        node("TensorScatter", "past update starts"),
        {**CACHE, "past": (FLOAT, ["batch", 64, 16])},
        {},
        "its past_cache has 3 dimensions",
    ),
    "asymmetric": (
        node("DequantizeLinear", "w scale zero"),
        {},
        {
            "w": np.ones((4, 8), np.int8),
            "scale": np.ones(4, np.float32),
            "zero": np.array([0, 0, 3, 0], np.int8),
        },
        "its x_zero_point is not 0",
    ),
    "scale-of-zero": (
        node("DequantizeLinear", "w scale", axis=0),
        {},
        {"w": np.ones((4, 8), np.int8), "scale": np.array([1, 0, 1, 1], np.float32)},
        "its x_scale is not above 0 everywhere",
    ),
    "unsigned": (
        node("QuantizeLinear", "x scale zero"),
        ROWS,
        {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.uint8)},
        "its y_zero_point is UINT8",
    ),
    "axes-from-an-input": (
        node("ReduceSum", "x axes"),
        {**ROWS, "axes": (INT64, [1])},
        {},
        "its axes is not constant",
    ),
    "unsorted": (
        node("TopK", "x k", "y indices", sorted=0),
        ROWS,
        {"k": np.array([3])},
        "its sorted is 0",
    ),
    "statistics": (
        node("LayerNormalization", "x scale", "y mean deviation"),
        ROWS,
        {"scale": np.ones(16, np.float32)},
        "it has more outputs: mean, deviation",
    ),
    "dilations": (
        node("MaxPool", "x", kernel_shape=[2, 2], dilations=[1, 2]),
        {"x": (FLOAT, [1, 1, 8, 8])},
        {},
        "its dilations are [1, 2]",
    ),
    "nine-dimensions": (
        node("Reshape", "x shape"),
        {"x": (FLOAT, [16])},
        {"shape": np.array([1, 1, 1, 1, 1, 1, 1, 4, 4])},
        "its output y has 9 dimensions",
    ),
}


@pytest.mark.parametrize(("offender", "inputs", "fault"), ATTENTION.values(), ids=ATTENTION.keys())
def test_an_attention_that_the_parser_refuses_is_named(
    tmp_path: Path, offender: NodeProto, inputs: Inputs, fault: str
) -> None:
    offences = offences_of(tmp_path, [offender], inputs)
    assert {(each.node, each.operator) for each in offences} == {("the Attention", "Attention")}
    assert any(each.fault.startswith(fault) or fault in each.fault for each in offences)
    assert all(each.instead for each in offences)


@pytest.mark.parametrize(
    ("offender", "inputs", "constants", "fault"), OTHERS.values(), ids=OTHERS.keys()
)
def test_a_node_that_the_parser_refuses_is_named(
    tmp_path: Path,
    offender: NodeProto,
    inputs: Inputs,
    constants: dict[str, np.ndarray],
    fault: str,
) -> None:
    offences = offences_of(tmp_path, [offender], inputs, constants)
    assert [(each.node, each.operator, each.fault) for each in offences] == [
        (offender.name, offender.op_type, fault)
    ]
    assert str(offences[0]).startswith(f"{offender.name} ({offender.op_type}): {fault}; ")


def test_an_attention_that_the_parser_takes_passes(tmp_path: Path) -> None:
    assert offences_of(tmp_path, [node("Attention", "q k v mask", scale=0.25)], HEADS) == []
    square = {name: (FLOAT, ["batch", 2, "new", 16]) for name in ("q", "k", "v")}
    assert offences_of(tmp_path, [node("Attention", "q k v", is_causal=1)], square) == []


def test_axes_that_follow_from_constants_are_constant(tmp_path: Path) -> None:
    nodes = [node("Neg", "one", "axes"), node("ReduceSum", "x axes")]
    assert offences_of(tmp_path, nodes, ROWS, {"one": np.array([1])}) == []


def test_a_graph_of_a_newer_opset_is_named(tmp_path: Path) -> None:
    (offence,) = offences_of(tmp_path, [node("Relu", "x")], ROWS, opset=25)
    assert (offence.node, offence.operator) == ("the graph", "opset_import")
    assert offence.fault == "it is of opset 25, and the parser knows 9 to 24"


def test_a_type_that_the_parser_lacks_is_named(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", to=FLOAT)]
    offences = offences_of(tmp_path, nodes, {"x": (TensorProto.UINT16, [4])})
    assert (offences[0].node, offences[0].operator) == ("x", "input")
    assert offences[0].fault == "the parser has no UINT16"
    assert offences[1].node == "the Cast"


def test_a_node_without_a_name_goes_by_its_output(tmp_path: Path) -> None:
    (offence,) = offences_of(tmp_path, [helper.make_node("Det", ["x"], ["result"])], ROWS)
    assert offence.node == "result"


def test_branches_are_read_too(tmp_path: Path) -> None:
    def branch(operator: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info("result", FLOAT, None)
        return helper.make_graph([node(operator, "x", "result")], operator, [], [result])

    nodes = [node("If", "wanted", then_branch=branch("Det"), else_branch=branch("Identity"))]
    inputs = {"wanted": (TensorProto.BOOL, []), "x": (FLOAT, [4, 4])}
    (offence,) = offences_of(tmp_path, nodes, inputs)
    assert offence.node == "the Det"


def test_a_models_own_functions_are_read_in_place_of_their_calls(tmp_path: Path) -> None:
    body = [node("ReduceSum", "value axes", "sum", keepdims=0), node("Det", "sum", "result")]
    function = helper.make_function(
        "own", "Sum", ["value", "axes"], ["result"], body, [helper.make_opsetid("", 24)]
    )
    calls = [helper.make_node("Sum", ["x", "axes"], ["y"], domain="own")]
    inputs, constants = {"x": (FLOAT, [2, 4, 4])}, {"axes": np.array([0])}
    offences = offences_of(
        tmp_path, calls, inputs, constants, domains=["own"], functions=[function]
    )
    assert [each.node for each in offences] == ["the Det"]


def test_the_parsers_own_operators_pass_in_any_domain(tmp_path: Path) -> None:
    nodes = [helper.make_node("TRT_FP8QuantizeLinear", ["x", "scale"], ["y"], domain="trt")]
    constants = {"scale": np.array(0.5, np.float32)}
    assert offences_of(tmp_path, nodes, ROWS, constants, domains=["trt"]) == []


def build(folder: Path, form: Form, precision: PrecisionName, **changes: Any) -> Path:
    build_decoder(
        RandomCheckpoint(tiny_architecture(**changes)),
        form=form,
        precision=precision,
        directory=folder,
        cache_length=64 if form == "standard" else None,
    )
    return folder / GRAPH_FILE


@pytest.mark.parametrize(
    "precision", ["fp32", "fp16", "bf16", "int8", "fp8", "int8-w8a8", "fp8-w8a8"]
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"family": "mistral", "sliding_window": 8},
        {"family": "qwen2", "attention_bias": True, "tied_embeddings": True},
        {"family": "qwen3", "qk_norm": True, "head_dim": 32},
    ],
    ids=["llama", "mistral", "qwen2", "qwen3"],
)
def test_the_standard_form_passes(
    tmp_path: Path, precision: PrecisionName, changes: dict[str, Any]
) -> None:
    assert lint_graph(build(tmp_path, "standard", precision, **changes)) == []


@pytest.mark.parametrize(
    ("form", "precision", "named"),
    [
        ("cpu", "fp32", {"GroupQueryAttention", "SkipSimplifiedLayerNormalization", "QuickGelu"}),
        (
            "cpu",
            "int8",
            {
                "GatherBlockQuantized",
                "GroupQueryAttention",
                "MatMulNBits",
                "QuickGelu",
                "SkipSimplifiedLayerNormalization",
            },
        ),
        ("native", "int8", {"Attention", "Embed", "Linear"}),
    ],
)
def test_every_foreign_operator_of_the_other_forms_is_named(
    tmp_path: Path, form: Form, precision: PrecisionName, named: set[str]
) -> None:
    path = build(tmp_path, form, precision)
    graph = onnx.load(path, load_external_data=False).graph
    foreign = [each for each in graph.node if each.domain]
    offences = lint_graph(path)
    assert [each.node for each in offences] == [each.name for each in foreign]
    assert {each.operator for each in offences} == {
        f"{foreign[0].domain} {operator}" for operator in named
    }


def test_the_table_is_of_operators_that_onnx_has() -> None:
    # Of these, onnx-tensorrt keeps what ONNX itself dropped before its first stable opset.
    dropped = {"ImageScaler", "ParametricSoftplus", "ScaledTanh", "Scatter", "Upsample"}
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert set(OPERATORS) - known - dropped == set()
    assert set(RULES) <= set(OPERATORS)
    assert not EXTENSIONS & set(OPERATORS)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    for name, content in (("text.onnx", b"no graph at all"), ("empty.onnx", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            lint_graph(tmp_path / name)
    with pytest.raises(ModelError, match=r"missing\.onnx"):
        lint_graph(tmp_path / "missing.onnx")
