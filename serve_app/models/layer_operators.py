"""What a form gives the decoder's layers besides their matrices."""

from __future__ import annotations

from typing import Protocol

from serve_app.models.checkpoint import FloatArray

__all__ = ["LayerOperators"]


class LayerOperators(Protocol):
    """Appends norms, attention and activation to a graph; a state is a row of [batch * sequence]."""

    def norm(self, name: str, states: str, weight: FloatArray) -> str:
        """Append an RMSNorm over the last axis and return its name."""
        ...

    def norm_sum(
        self, name: str, residual: str, update: str, weight: FloatArray
    ) -> tuple[str, str]:
        """Append residual + update and the RMSNorm of that; return (normed, sum)."""
        ...

    def attention(
        self, name: str, layer: int, qkv: str, qk_norm: tuple[FloatArray, FloatArray] | None
    ) -> str:
        """Append a layer's attention over its cache.

        Args:
            name: name of the result.
            layer: which layer's cache.
            qkv: [batch * sequence, (heads + 2 * kv_heads) * head_dim], packed in that order.
            qk_norm: RMSNorm weights [head_dim] of queries and keys, or None.

        Returns:
            The name of the result, [batch * sequence, heads * head_dim].
        """
        ...

    def swiglu(self, name: str, gate_up: str) -> str:
        """Append silu(gate) * up from [..., 2 * intermediate], gate first."""
        ...
