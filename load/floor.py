"""The least time that some work could take on some machine: bytes to read, operations to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

from load.timed_backend import RuntimeWork
from serve_app.models.decoder_interface import DATA_FILE
from serve_app.models.element_types import float_dtype
from serve_app.models.manifest import Manifest

__all__ = ["Demand", "Floor", "Speed"]

_EMBEDDING = "model.embed_tokens.weight"
_ROTARY_ELEMENT = 4  # bytes


class Speed(Protocol):
    """What something that computes reaches at best: a machine's processor, or a device.

    Attributes:
        read_bytes_per_s: memory bandwidth, reading.
        ops_per_s: operations, of which a multiplication with its addition is two.
    """

    @property
    def read_bytes_per_s(self) -> float: ...  # noqa: D102

    @property
    def ops_per_s(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Demand:
    """What one decoder asks of a machine.

    Attributes:
        weight_bytes: read by every step, however many sequences are in it.
        token_bytes: K/V read per token of the past.
        token_flops: operations per token in the layers' matrices.
        head_flops: operations per token whose logits are wanted.
        past_flops: operations of attention per token of the past.
    """

    weight_bytes: int
    token_bytes: int
    token_flops: int
    head_flops: int
    past_flops: int

    @classmethod
    def of(cls, manifest: Manifest, token_bytes: int) -> Self:
        """Read it off a prepared model; the file of the weights says how large they are stored."""
        architecture = manifest.architecture
        shapes = dict(architecture.tensors())
        elements = sum(math.prod(shape) for shape in shapes.values())
        stored = manifest.files[DATA_FILE].bytes - _rotary_bytes(manifest)
        embedding = math.prod(shapes[_EMBEDDING])
        # A table that isn't the output head as well is only looked up: a row per token.
        read = elements if architecture.tied_embeddings else elements - embedding
        layers = sum(
            math.prod(shape)
            for name, shape in shapes.items()
            if len(shape) == 2 and name.startswith("model.layers.")
        )
        return cls(
            weight_bytes=stored * read // elements,
            token_bytes=token_bytes,
            token_flops=2 * layers,
            head_flops=2 * embedding,
            # Queries by keys, then weights by values.
            past_flops=4 * architecture.layers * architecture.heads * architecture.head_dim,
        )


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds below which no decoder can do some work, if memory and arithmetic fully overlap.

    Attributes:
        decode_read_s: to read weights and K/V in all steps without prompts.
        decode_compute_s: for the arithmetic in them.
        mixed_read_s: to read the weights in all steps with prompts.
        mixed_compute_s: for the arithmetic in them.
    """

    decode_read_s: float
    decode_compute_s: float
    mixed_read_s: float
    mixed_compute_s: float

    @classmethod
    def of(cls, work: RuntimeWork, demand: Demand, machine: Speed) -> Self:
        """Return the floor of some work."""
        # Every token attends to itself too.
        decode_flops = work.decoded * (demand.token_flops + demand.head_flops)
        decode_flops += (work.decode_past + work.decoded) * demand.past_flops
        mixed_flops = (work.prefilled + work.mixed_decoded) * demand.token_flops
        mixed_flops += work.mixed_decoded * demand.head_flops
        mixed_flops += (work.mixed_past + work.prefilled + work.mixed_decoded) * demand.past_flops
        decode_bytes = work.decodes * demand.weight_bytes + work.decode_past * demand.token_bytes
        return cls(
            decode_read_s=decode_bytes / machine.read_bytes_per_s,
            decode_compute_s=decode_flops / machine.ops_per_s,
            mixed_read_s=work.mixed * demand.weight_bytes / machine.read_bytes_per_s,
            mixed_compute_s=mixed_flops / machine.ops_per_s,
        )

    @property
    def decode_s(self) -> float:
        """The floor of all steps without prompts."""
        return max(self.decode_read_s, self.decode_compute_s)

    @property
    def mixed_s(self) -> float:
        """The floor of all steps with prompts."""
        return max(self.mixed_read_s, self.mixed_compute_s)


def _rotary_bytes(manifest: Manifest) -> int:
    """Return the size of the tables that a rotation looks a row up in; steps don't read the rest."""
    architecture = manifest.architecture
    if manifest.cache_length is None:
        return architecture.context_length * architecture.head_dim * _ROTARY_ELEMENT
    element = float_dtype(manifest.interface.cache_dtype).itemsize
    return manifest.cache_length * architecture.head_dim * element
