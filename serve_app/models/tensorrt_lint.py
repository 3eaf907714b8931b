"""Find what TensorRT's ONNX parser would refuse in a graph, without TensorRT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from serve_app.errors import ModelError
from serve_app.models.tensorrt_operators import (
    EXTENSIONS,
    INSTEAD,
    MOST_DIMENSIONS,
    OPERATORS,
    OPSETS,
    RULES,
    TYPES,
    AttributeValue,
    CausalOnSquares,
    ConstantInput,
    InputRank,
    InputTypes,
    NoAttribute,
    NoInput,
    OneOutput,
    OnesAttribute,
    PositiveInput,
    Rule,
    ZeroInput,
)

__all__ = ["Offence", "lint_graph"]

_OWN_DOMAINS = ("", "ai.onnx")
_PLUGIN = "rewrite it in ONNX's own operators, or register a TensorRT plugin of its name"


@dataclass(frozen=True, slots=True)
class Offence:
    """One reason why the parser refuses a graph, or builds something else than was meant.

    Attributes:
        node: name of the node, or of the value where no node is at fault.
        operator: the node's operator, with its domain where that is not ONNX's own; else what the
            value is.
        fault: what is wrong.
        instead: what to do.
    """

    node: str
    operator: str
    fault: str
    instead: str

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.fault}; {self.instead}."


def lint_graph(path: Path) -> list[Offence]:
    """Compare a graph with what `tensorrt_operators` says of TensorRT's parser.

    What is unknown without running the graph, such as a rank behind an operator nobody knows, is not
    held against a node. Weights stay on the disk, but for the scales and zero points of quantization.

    Args:
        path: an .onnx file, with its data files beside it.

    Returns:
        The offences, in the order of the nodes; none for a graph that the parser should take.

    Raises:
        ModelError: the file can't be read, or is no valid ONNX graph.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        known = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # the readers' exceptions have no common base of their own
        msg = f"{path} is no ONNX graph that can be read ({error}); give a whole .onnx file."
        raise ModelError(msg) from error
    if not known.graph.node:
        msg = f"{path} holds no ONNX graph; give a whole .onnx file."
        raise ModelError(msg)
    linter = _Linter(known, path.parent)
    return [*_model_offences(known), *linter.graph(known.graph, _Values()), *linter.functions()]


def _model_offences(model: ModelProto) -> Iterator[Offence]:
    for opset in model.opset_import:
        if opset.domain in _OWN_DOMAINS and opset.version not in OPSETS:
            yield Offence(
                "the graph",
                "opset_import",
                f"it is of opset {opset.version}, and the parser knows {OPSETS[0]} to {OPSETS[-1]}",
                f"export it in opset {OPSETS[-1]}",
            )


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is known of a value: element type, and dimensions as far as they are numbers or names."""

    type: int
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class _Values:
    """What is known of the values that a graph's nodes may read.

    Attributes:
        shapes: types and dimensions.
        tensors: those that are stored in the model.
        constants: those that depend on no input.
    """

    shapes: dict[str, _Shape] = field(default_factory=dict)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)

    def inside(self, graph: GraphProto) -> _Values:
        """Return what is known within a graph; its nodes see the values around it too."""
        values = _Values(dict(self.shapes), dict(self.tensors), set(self.constants))
        for info in (*graph.input, *graph.value_info, *graph.output):
            values.shapes[info.name] = _shape_of(info)
        for tensor in graph.initializer:
            values.shapes[tensor.name] = _Shape(tensor.data_type, tuple(tensor.dims))
            values.tensors[tensor.name] = tensor
            values.constants.add(tensor.name)
        for node in graph.node:
            if node.op_type == "Constant":
                values.tensors.update(
                    (node.output[0], each.t) for each in node.attribute if each.name == "value"
                )
            read = (name for name in node.input if name)
            if all(name in values.constants for name in read) and not _subgraphs(node):
                values.constants.update(node.output)
        return values


class _Linter:
    """Goes through the nodes of a model whose data files are in `folder`."""

    def __init__(self, model: ModelProto, folder: Path) -> None:
        self._functions = {(each.domain, each.name): each for each in model.functions}
        self._folder = folder

    def functions(self) -> Iterator[Offence]:
        """Yield the offences in the model's own functions, whose inputs may be anything."""
        for function in self._functions.values():
            body = GraphProto(node=function.node)
            yield from self.graph(body, _Values(constants=set(function.input)))

    def graph(self, graph: GraphProto, around: _Values) -> Iterator[Offence]:
        """Yield the offences of a graph, and of those in its nodes."""
        values = around.inside(graph)
        for kind, names in (
            ("input", [each.name for each in graph.input]),
            ("initializer", [each.name for each in graph.initializer]),
        ):
            yield from self._values(kind, names, values)
        for node in graph.node:
            yield from self._node(node, values)

    def _values(self, kind: str, names: Sequence[str], values: _Values) -> Iterator[Offence]:
        for name in names:
            found = values.shapes[name]
            if found.type and found.type not in TYPES:
                fault = f"the parser has no {_type(found.type)}"
                yield Offence(name, kind, fault, "use one of ONNX's common types")
            if found.dims is not None and len(found.dims) > MOST_DIMENSIONS:
                fault = f"it has {len(found.dims)} dimensions, and tensors have {MOST_DIMENSIONS}"
                yield Offence(name, kind, fault, "join some of them")

    def _node(self, node: NodeProto, values: _Values) -> Iterator[Offence]:
        for subgraph in _subgraphs(node):
            yield from self.graph(subgraph, values)
        if (node.domain, node.op_type) in self._functions or node.op_type in EXTENSIONS:
            return
        own = node.domain in _OWN_DOMAINS
        operator = node.op_type if own else f"{node.domain} {node.op_type}"
        place = node.name or next(iter(node.output), "a node without a name")
        if not own or node.op_type not in OPERATORS:
            fault = (
                "the parser has no such operator"
                if own
                else f"the parser has no operators of {node.domain}"
            )
            yield Offence(place, operator, fault, INSTEAD.get(node.op_type, _PLUGIN))
            return
        for fault, instead in self._faults(node, values):
            yield Offence(place, operator, fault, instead)

    def _faults(self, node: NodeProto, values: _Values) -> Iterator[tuple[str, str]]:
        types = OPERATORS[node.op_type]
        first = values.shapes.get(node.input[0]) if node.input else None
        known = first is not None and first.type not in (0, TensorProto.DOUBLE)
        if types is not None and first is not None and known and first.type not in types:
            fault = f"its input {node.input[0]} is {_type(first.type)}"
            yield fault, f"cast it to one of {', '.join(sorted(map(_type, types)))}"
        for name in node.output:
            found = values.shapes.get(name)
            if found is not None and found.dims is not None and len(found.dims) > MOST_DIMENSIONS:
                fault = f"its output {name} has {len(found.dims)} dimensions"
                yield fault, f"join some of them: tensors have {MOST_DIMENSIONS}"
        for rule in RULES.get(node.op_type, ()):
            if broken := self._broken(rule, node, values):
                yield broken, rule.instead

    def _broken(self, rule: Rule, node: NodeProto, values: _Values) -> str | None:
        """Return how a node breaks a rule, or None."""
        match rule:
            case NoAttribute(name):
                return f"it has the attribute {name}" if name in _attributes(node) else None
            case AttributeValue(name, allowed):
                given = _attributes(node).get(name, allowed[0])
                return f"its {name} is {given}" if given not in allowed else None
            case OnesAttribute(name):
                given = _attributes(node).get(name, [])
                return f"its {name} are {given}" if set(given) - {1} else None
            case OneOutput():
                extra = [name for name in node.output[1:] if name]
                return f"it has more outputs: {', '.join(extra)}" if extra else None
            case CausalOnSquares():
                return _causal_fault(node, values)
        return self._broken_input(rule, node, values)

    def _broken_input(
        self,
        rule: InputRank | InputTypes | NoInput | ConstantInput | ZeroInput | PositiveInput,
        node: NodeProto,
        values: _Values,
    ) -> str | None:
        value = node.input[rule.index] if rule.index < len(node.input) else ""
        if not value:
            return None
        found = values.shapes.get(value, _Shape(0, None))
        match rule:
            case NoInput(name=name):
                return f"it has the input {name}"
            case InputRank(name=name, ranks=ranks):
                if found.dims is not None and len(found.dims) not in ranks:
                    return f"its {name} has {len(found.dims)} dimensions"
            case InputTypes(name=name, types=types):
                if found.type and found.type not in types:
                    return f"its {name} is {_type(found.type)}"
            case ConstantInput(name=name):
                if value not in values.constants:
                    return f"its {name} is not constant"
            case ZeroInput(name=name):
                content = self._content(value, values)
                if content is not None and content.astype(np.float32).any():
                    return f"its {name} is not 0"
            case PositiveInput(name=name):
                content = self._content(value, values)
                if content is not None and not (content.astype(np.float32) > 0).all():
                    return f"its {name} is not above 0 everywhere"
        return None

    def _content(self, name: str, values: _Values) -> NDArray[Any] | None:
        """Read a constant, or return None where it isn't stored as one."""
        tensor = values.tensors.get(name)
        if tensor is None:
            return None
        try:
            return numpy_helper.to_array(tensor, base_dir=str(self._folder))
        except (OSError, ValueError) as error:
            msg = f"The data of {name} can't be read ({error}); keep data files beside the graph."
            raise ModelError(msg) from error


def _causal_fault(node: NodeProto, values: _Values) -> str | None:
    if not _attributes(node).get("is_causal", 0):
        return None
    if any(node.input[3:4]):
        return "it has both is_causal and attn_mask"
    query, key = (values.shapes.get(name, _Shape(0, None)).dims for name in node.input[:2])
    if query and key and query[-2] is not None and query[-2] == key[-2]:
        return None
    return "is_causal is aligned with the upper left corner, wrong wherever there is a past"


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    graphs = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graphs.append(attribute.g)
        graphs.extend(attribute.graphs)
    return graphs


def _attributes(node: NodeProto) -> dict[str, Any]:
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in given.items()
    }


def _shape_of(info: ValueInfoProto) -> _Shape:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return _Shape(tensor.elem_type, None)
    dims = tuple(
        each.dim_value if each.HasField("dim_value") else each.dim_param or None
        for each in tensor.shape.dim
    )
    return _Shape(tensor.elem_type, dims)


def _type(element: int) -> str:
    return str(TensorProto.DataType.Name(element))
