"""What a precision is: how weights are stored and multiplied, which a graph's author calls.

A precision knows two things: a *linear* (one projection of the decoder) and a *table* (the
embedding, which is read row by row and, where embeddings are tied, is the output head as well).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.models.element_types import FloatName
from serve_app.models.graph_builder import GraphBuilder
from serve_app.settings import PrecisionName

__all__ = ["FloatArray", "Precision", "PrecisionName", "Table"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Table:
    """A [rows, width] matrix in the graph, in a precision's own storage.

    Attributes:
        name: name of the stored values; what else belongs to them is named after it.
        rows: number of rows.
        width: elements of a row.
    """

    name: str
    rows: int
    width: int


class Precision(Protocol):
    """How one precision stores matrices and multiplies by them.

    Attributes:
        dtype: element type of the states that it takes and gives.
    """

    dtype: FloatName

    def linear(
        self,
        graph: GraphBuilder,
        name: str,
        states: str,
        weight: FloatArray,
        bias: FloatArray | None = None,
    ) -> str:
        """Append states @ weight.T + bias and return its name.

        Args:
            graph: where to append it.
            name: name of the result.
            states: [rows, in], the name of a value of `dtype`.
            weight: [out, in].
            bias: [out], or None.

        Raises:
            ModelError: the shape can't be stored in this precision.
        """
        ...

    def table(self, graph: GraphBuilder, name: str, weight: FloatArray) -> Table:
        """Store a matrix for `look_up` and `project`.

        Raises:
            ModelError: the shape can't be stored in this precision.
        """
        ...

    def look_up(self, graph: GraphBuilder, name: str, table: Table, indices: str) -> str:
        """Append the rows of the table at the indices: [...] int64 to [..., width] of `dtype`."""
        ...

    def project(self, graph: GraphBuilder, name: str, table: Table, states: str) -> str:
        """Append states @ table.T: [n, width] to [n, rows], both of `dtype`."""
        ...
