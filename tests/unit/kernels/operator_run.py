"""Graphs of one operator each, to run it on arrays of one's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime as ort

from serve_app.generation.backends.session import bind_input
from serve_app.kernels import library
from serve_app.kernels.library import DOMAIN, Level
from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.packed_blocks import pack

# Those of this processor; the plain one is everybody's.
LEVELS: list[Level] = []
if library.level() is not None:
    LEVELS = [name for name in get_args(Level) if library.use_level(name)]
    library.use_level(None)

EPSILON = 0.01  # large enough to show
NOTHING = np.zeros(0, np.float32)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def open_graph(folder: Path, write: Callable[[GraphBuilder], None]) -> ort.InferenceSession:
    graph_file = Path(tempfile.mkdtemp(dir=folder)) / "operator.onnx"
    with GraphBuilder(graph_file, graph_file.with_suffix(".data")) as graph:
        write(graph)
        graph.save()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    library.register(options, threads=2)
    return ort.InferenceSession(graph_file, options, providers=["CPUExecutionProvider"])


class Linear:
    """A Linear with its weights; calling it gives the product of the states."""

    def __init__(
        self,
        folder: Path,
        weight: np.ndarray,
        *,
        width: int | None = None,
        norm: np.ndarray = NOTHING,
        bias: np.ndarray = NOTHING,
        swiglu: bool = False,
        rank: int = 2,
    ) -> None:
        self.width = len(weight) if width is None else width

        def write(graph: GraphBuilder) -> None:
            graph.input("states", "float32", [f"axis_{axis}" for axis in range(rank)])
            graph.input("residual", "float32", ["residual_rows", "residual_width"])
            graph.output("product", "float32", ["axis_0", self.width])
            graph.weight("norm", norm)
            graph.weight("weight", pack("weight", weight))
            graph.weight("bias", bias)
            graph.node(
                "Linear",
                ["states", "norm", "weight", "bias", "residual"],
                "product",
                domain=DOMAIN,
                width=self.width,
                swiglu=int(swiglu),
                epsilon=EPSILON,
            )

        self._session = open_graph(folder, write)

    def __call__(self, states: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        given = np.zeros((0, self.width), np.float32) if residual is None else residual
        product: np.ndarray = self._session.run(None, {"states": states, "residual": given})[0]
        return product


class Embed:
    """An Embed with its table; calling it gives the rows of the tokens."""

    def __init__(self, folder: Path, packed: np.ndarray, *, width: int) -> None:
        def write(graph: GraphBuilder) -> None:
            graph.input("tokens", "int64", ["tokens"])
            graph.output("rows", "float32", ["tokens", width])
            graph.weight("table", packed)
            graph.node("Embed", ["tokens", "table"], "rows", domain=DOMAIN, width=width)

        self._session = open_graph(folder, write)

    def __call__(self, tokens: Any) -> np.ndarray:
        rows: np.ndarray = self._session.run(None, {"tokens": np.array(tokens, np.int64)})[0]
        return rows


class Attention:
    """An Attention with its tables; calling it enters rows into caches and attends to them.

    Attributes:
        cosine, sine: [positions, dim / 2].
        norms: of queries and keys, [dim] or nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        heads: int,
        kv_heads: int,
        dim: int,
        window: int = 0,
        norms: tuple[np.ndarray, np.ndarray] = (NOTHING, NOTHING),
        positions: int = 256,
        tables: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.heads, self.kv_heads, self.dim, self.window = heads, kv_heads, dim, window
        self.norms = norms
        angles = np.outer(np.arange(positions), 100.0 ** -np.linspace(0, 1, dim // 2))
        made = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.cosine, self.sine = made if tables is None else tables

        def write(graph: GraphBuilder) -> None:
            graph.input("qkv", "float32", ["rows", "width"])
            for name in ("keys", "values"):
                graph.input(name, "float16", [f"{name}_{axis}" for axis in range(4)])
            graph.input("slots", "int32", ["slot_rows"])
            graph.input("positions", "int32", ["position_rows"])
            graph.output("attended", "float32", ["rows", heads * dim])
            weights = {"cosine": self.cosine, "sine": self.sine}
            weights |= dict(zip(("query_norm", "key_norm"), norms, strict=True))
            for name, array in weights.items():
                graph.weight(name, array)
            graph.node(
                "Attention",
                ["qkv", "keys", "values", "slots", "positions", *weights],
                "attended",
                domain=DOMAIN,
                num_heads=heads,
                kv_num_heads=kv_heads,
                head_dim=dim,
                window=window,
                epsilon=EPSILON,
            )

        self._session = open_graph(folder, write)

    @property
    def width(self) -> int:
        """Elements of a row's query, key and value heads."""
        return (self.heads + 2 * self.kv_heads) * self.dim

    def cache(self, slots: int, max_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Make keys and values of which nothing was ever written, so that reading them would show."""
        shape = (slots, self.kv_heads, max_len, self.dim)
        return np.full(shape, np.nan, np.float16), np.full(shape, np.nan, np.float16)

    def __call__(
        self,
        qkv: np.ndarray,
        cache: tuple[np.ndarray, np.ndarray],
        slots: Any,
        positions: Any,
    ) -> np.ndarray:
        binding = self._session.io_binding()
        feeds = {
            "qkv": qkv,
            "keys": cache[0],
            "values": cache[1],
            "slots": np.array(slots, np.int32),
            "positions": np.array(positions, np.int32),
        }
        for name, array in feeds.items():
            bind_input(binding, name, array)
        binding.bind_output("attended", "cpu")
        self._session.run_with_iobinding(binding)
        attended: np.ndarray = binding.get_outputs()[0].numpy()
        return attended
