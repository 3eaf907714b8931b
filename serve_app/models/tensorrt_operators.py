"""What TensorRT's ONNX parser takes, as data: operators, element types, and restrictions on nodes.

Sources: onnx-tensorrt's `docs/operators.md` for TensorRT 11.2 (operators, types, opsets, and most of
the restrictions), and its importers, `onnxOpImporters.cpp` and `onnxOpCheckers.cpp` of TensorRT 10.15,
for what they check beyond that; and what TensorRT 11.4 says of its own attention layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import TensorProto

__all__ = [
    "EXTENSIONS",
    "INSTEAD",
    "MOST_DIMENSIONS",
    "OPERATORS",
    "OPSETS",
    "RULES",
    "TYPES",
    "AttributeValue",
    "CausalOnSquares",
    "ConstantInput",
    "InputRank",
    "InputTypes",
    "NoAttribute",
    "NoInput",
    "OneOutput",
    "OnesAttribute",
    "PositiveInput",
    "Rule",
    "ZeroInput",
]

OPSETS = range(9, 25)
"""Versions of ONNX's own operators that the parser knows."""

MOST_DIMENSIONS = 8
"""The most dimensions of a tensor."""

_FLOAT = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_INTEGER = frozenset({TensorProto.INT32, TensorProto.INT64})
_NUMBER = _FLOAT | _INTEGER
_BOOL = frozenset({TensorProto.BOOL})
_ANY = _NUMBER | _BOOL
_HALVES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
_FP8 = frozenset({TensorProto.FLOAT8E4M3FN})
_INT8 = frozenset({TensorProto.INT8})
_QUANTIZED = _INT8 | _FP8 | {TensorProto.INT4, TensorProto.FLOAT4E2M1}
_UINT8 = frozenset({TensorProto.UINT8})

TYPES = _ANY | _QUANTIZED | _UINT8 | {TensorProto.DOUBLE}
"""Element types that a tensor may have at all. DOUBLE is cast down to FLOAT."""


def _each(types: frozenset[int] | None, names: str) -> dict[str, frozenset[int] | None]:
    return dict.fromkeys(names.split(), types)


OPERATORS: Mapping[str, frozenset[int] | None] = {
    **_each(
        _FLOAT,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv "
        "ConvTranspose Cos Cosh CumSum DFT Dropout Einsum Elu Erf Exp Floor GRU Gemm "
        "GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization HardSigmoid "
        "HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM LayerNormalization "
        "LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization "
        "PRelu ParametricSoftplus QuantizeLinear RMSNormalization RNN Reciprocal Resize "
        "RotaryEmbedding Round STFT ScaledTanh Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt "
        "Swish Tan Tanh ThresholdedRelu Upsample",
    ),
    **_each(
        _NUMBER,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual "
        "Max Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax "
        "ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements "
        "ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    **_each(
        _ANY,
        "Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity Reshape "
        "ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
    ),
    **_each(_HALVES, "DeformConv Mish NonMaxSuppression NonZero RoiAlign"),
    **_each(_BOOL, "And Not Or Xor"),
    "Attention": _FLOAT | _INT8 | _FP8,
    "Cast": _ANY | _UINT8,
    "CastLike": _ANY | _UINT8,
    "DequantizeLinear": _QUANTIZED,
    "Gelu": _NUMBER | _INT8,
    "Mean": _NUMBER | _FP8,
    "TensorScatter": _FLOAT | {TensorProto.INT32},
    # Their first input, if they have one, is no data.
    **_each(
        None,
        "BlackmanWindow Constant ConstantOfShape HammingWindow HannWindow If Loop OneHot "
        "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Scan",
    ),
}
"""ONNX's operators that the parser has, with the element types of the first input."""

EXTENSIONS = frozenset(
    {
        "TRT_BlockDequantize",
        "TRT_BlockQuantize",
        "TRT_DynamicQuantize",
        "TRT_FP4DynamicQuantize",
        "TRT_FP8DequantizeLinear",
        "TRT_FP8QuantizeLinear",
        "TRT_INT4DequantizeLinear",
        "TRT_INT4QuantizeLinear",
        "TRT_MXFP8DequantizeLinear",
        "TRT_MXFP8DynamicQuantize",
        "TRT_MXFP8QuantizeLinear",
        "TRT_QuantizedAttention",
    }
)
"""Operators of the parser's own, which it takes from any domain."""

_WEIGHTS = "store the weights as constants in 8 bits behind a DequantizeLinear, and use MatMul"

INSTEAD: Mapping[str, str] = {
    "GroupQueryAttention": "use TensorScatter and Attention with a boolean mask",
    "MultiHeadAttention": "use Attention with queries, keys and values of 4 dimensions",
    "MatMulNBits": _WEIGHTS,
    "MatMulInteger": _WEIGHTS,
    "QLinearMatMul": "use QuantizeLinear and DequantizeLinear around MatMul",
    "ConvInteger": "use QuantizeLinear and DequantizeLinear around Conv",
    "QLinearConv": "use QuantizeLinear and DequantizeLinear around Conv",
    "DynamicQuantizeLinear": "use QuantizeLinear and DequantizeLinear with constant scales",
    "GatherBlockQuantized": "use Gather on a table in floating point",
    "SkipSimplifiedLayerNormalization": "use Add and RMSNormalization",
    "SimplifiedLayerNormalization": "use RMSNormalization",
    "SkipLayerNormalization": "use Add and LayerNormalization",
    "QuickGelu": "use Sigmoid and Mul",
    "FastGelu": "use Gelu with approximate tanh",
    "RotaryEmbedding": "use ONNX's own RotaryEmbedding, of opset 23",
}
"""What to use where a node's operator isn't there, by operator."""


@dataclass(frozen=True, slots=True)
class InputRank:
    """An input must have one of some numbers of dimensions."""

    index: int
    name: str
    ranks: Sequence[int]
    instead: str


@dataclass(frozen=True, slots=True)
class InputTypes:
    """An input must have one of some element types."""

    index: int
    name: str
    types: frozenset[int]
    instead: str


@dataclass(frozen=True, slots=True)
class NoInput:
    """An optional input must be left out."""

    index: int
    name: str
    instead: str


@dataclass(frozen=True, slots=True)
class ConstantInput:
    """An input must be known while the engine is built."""

    index: int
    name: str
    instead: str = "make it an initializer"


@dataclass(frozen=True, slots=True)
class ZeroInput:
    """A constant input must be all zeros."""

    index: int
    name: str
    instead: str


@dataclass(frozen=True, slots=True)
class PositiveInput:
    """A constant input must be above zero everywhere."""

    index: int
    name: str
    instead: str


@dataclass(frozen=True, slots=True)
class NoAttribute:
    """An attribute must be left out."""

    name: str
    instead: str


@dataclass(frozen=True, slots=True)
class AttributeValue:
    """An attribute must have one of some values, its default included where it isn't there."""

    name: str
    values: Sequence[int | float | str]
    instead: str


@dataclass(frozen=True, slots=True)
class OnesAttribute:
    """A list of numbers must be all ones, or left out."""

    name: str
    instead: str


@dataclass(frozen=True, slots=True)
class OneOutput:
    """Only the first output may be used."""

    instead: str = "leave the others out"


@dataclass(frozen=True, slots=True)
class CausalOnSquares:
    """`is_causal` must stay 0 unless there are as many keys as queries.

    The parser takes the node and aligns causality with the upper left corner, so that queries behind
    a past would see its beginning alone. Beside a mask, TensorRT doesn't take it at all.
    """

    instead: str = "put causality into a boolean mask, and leave is_causal out"


Rule = (
    InputRank
    | InputTypes
    | NoInput
    | ConstantInput
    | ZeroInput
    | PositiveInput
    | NoAttribute
    | AttributeValue
    | OnesAttribute
    | OneOutput
    | CausalOnSquares
)

_AXES = (ConstantInput(1, "axes"),)
_BY_HEADS = "reshape to [batch, heads, sequence, head_dim]"
_SYMMETRIC = "quantize symmetrically"
_POOL = (OnesAttribute("dilations", "pool without dilations"),)

RULES: Mapping[str, Sequence[Rule]] = {
    "Attention": (
        *(InputRank(index, name, (4,), _BY_HEADS) for index, name in enumerate(("Q", "K", "V"))),
        InputRank(3, "attn_mask", (4,), "give it [batch, 1, queries, keys]"),
        NoInput(4, "past_key", "write keys into a cache with TensorScatter"),
        NoInput(5, "past_value", "write values into a cache with TensorScatter"),
        NoInput(6, "nonpad_kv_seqlen", "use a boolean mask"),
        AttributeValue("softcap", (0.0,), "choose a model without it"),
        AttributeValue("qk_matmul_output_mode", (0,), "leave it out"),
        NoAttribute("softmax_precision", "leave it out"),
        CausalOnSquares(),
        OneOutput("write the cache with TensorScatter, and leave the other outputs out"),
    ),
    "TensorScatter": (
        InputRank(0, "past_cache", (4,), _BY_HEADS),
        InputRank(1, "update", (4,), _BY_HEADS),
        AttributeValue("axis", (-2, 2), "keep positions in the dimension before the last"),
        AttributeValue("mode", ("linear",), "write linearly"),
    ),
    "DequantizeLinear": (
        ZeroInput(2, "x_zero_point", _SYMMETRIC),
        PositiveInput(1, "x_scale", "give rows of zeros any scale above 0"),
    ),
    "QuantizeLinear": (
        ZeroInput(2, "y_zero_point", _SYMMETRIC),
        PositiveInput(1, "y_scale", "give rows of zeros any scale above 0"),
        InputTypes(2, "y_zero_point", _QUANTIZED, "quantize to INT8 or FLOAT8E4M3FN"),
    ),
    "BatchNormalization": (
        AttributeValue("training_mode", (0,), "export for inference"),
        OneOutput(),
    ),
    "LayerNormalization": (OneOutput(),),
    "MaxPool": (OneOutput(), *_POOL),
    "AveragePool": _POOL,
    "LpPool": (AttributeValue("p", (1, 2), "use p 1 or 2"), *_POOL),
    "LpNormalization": (AttributeValue("p", (1, 2), "use p 1 or 2"),),
    "Constant": tuple(
        NoAttribute(name, "use a dense tensor of numbers")
        for name in ("sparse_value", "value_string", "value_strings")
    ),
    "CumSum": (ConstantInput(1, "axis"),),
    "OneHot": (ConstantInput(1, "depth"),),
    "Squeeze": _AXES,
    "Unsqueeze": _AXES,
    **{name: _AXES for name in OPERATORS if name.startswith("Reduce")},
    "Dropout": (
        ConstantInput(2, "training_mode"),
        ZeroInput(2, "training_mode", "export for inference"),
    ),
    "GridSample": (InputRank(0, "X", (4, 5), "sample images or volumes"),),
    "LSTM": (
        AttributeValue("input_forget", (0,), "use separate gates"),
        AttributeValue("layout", (0,), "put the sequence first"),
    ),
    "Resize": (
        AttributeValue(
            "coordinate_transformation_mode",
            (
                "align_corners",
                "asymmetric",
                "half_pixel",
                "pytorch_half_pixel",
                "tf_half_pixel_for_nn",
            ),
            "use half_pixel",
        ),
        AttributeValue("mode", ("cubic", "linear", "nearest"), "use linear"),
        AttributeValue("antialias", (0,), "resize without it"),
        AttributeValue("keep_aspect_ratio_policy", ("stretch",), "use stretch"),
    ),
    "ScatterND": (AttributeValue("reduction", ("none",), "reduce in another node"),),
    "STFT": (ConstantInput(1, "frame_step"), ConstantInput(2, "window")),
    "TopK": (AttributeValue("sorted", (1,), "sort"),),
}
"""What a node of some operator must keep to, beyond ONNX's own rules."""
