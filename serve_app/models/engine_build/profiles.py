"""The optimization profiles of a decoder: which shapes an engine must take, and which it is tuned to.

An engine has two, in this order. *prefill* takes a piece of one prompt, *decode* one token of each
running sequence. Both write into the cache of as many slots as they have sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.errors import TensorRTEngineError
from serve_app.models.decoder_interface import (
    INPUT_IDS,
    LOGIT_ROWS,
    WRITE_INDICES,
    DecoderInterface,
)

__all__ = ["Dims", "EngineProfile", "ProfileName", "ShapeRange", "decoder_profiles"]

Dims = tuple[Annotated[int, Field(ge=0)], ...]
ProfileName = Literal["prefill", "decode"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapeRange(_Part):
    """Shapes of one input: the least, the one that kernels are chosen for, and the most."""

    least: Dims
    tuned: Dims
    most: Dims

    @model_validator(mode="after")
    def _ordered(self) -> ShapeRange:
        ranges = zip(self.least, self.tuned, self.most, strict=True)
        if not all(least <= tuned <= most for least, tuned, most in ranges):
            msg = "a shape's least, tuned and most dimensions must not decrease"
            raise ValueError(msg)
        return self


class EngineProfile(_Part):
    """Shapes of all inputs that have dynamic dimensions.

    Attributes:
        name: what it is for.
        inputs: ranges by the names of inputs.
    """

    name: ProfileName
    inputs: Mapping[str, ShapeRange]

    @property
    def most_sequences(self) -> int:
        """Most sequences of one step."""
        return self.inputs[INPUT_IDS].most[0]

    @property
    def most_tokens(self) -> int:
        """Most new tokens of one sequence in one step."""
        return self.inputs[INPUT_IDS].most[1]


def decoder_profiles(
    interface: DecoderInterface, *, slots: int, prefill_chunk: int
) -> tuple[EngineProfile, EngineProfile]:
    """Return the profiles *prefill* and *decode* of a standard graph.

    Prefill is tuned to a whole chunk, since all pieces of a prompt but its last have that size, and
    decode to full slots, since that is when speed counts. Prefill has logits for one row: TensorRT
    shall not have to choose kernels for none.

    Args:
        interface: of a graph in the standard form.
        slots: sequences that decode at once.
        prefill_chunk: tokens of a prompt that are computed at once.

    Raises:
        TensorRTEngineError: the graph is of another form, or a chunk is longer than its cache.
    """
    length = interface.cache_length
    if interface.form != "standard" or length is None:
        msg = (
            f"TensorRT takes the standard form, and this is the {interface.form} form: "
            "`parley model prepare --form standard` writes it."
        )
        raise TensorRTEngineError(msg)
    if prefill_chunk > length:
        msg = (
            f"A chunk of {prefill_chunk} tokens doesn't fit a cache of {length}: take a smaller "
            "--prefill-chunk, or prepare the model with a larger --cache-length."
        )
        raise TensorRTEngineError(msg)
    return (
        _profile(interface, length, "prefill", sequences=(1, 1, 1), tokens=(1, prefill_chunk)),
        _profile(interface, length, "decode", sequences=(1, slots, slots), tokens=(1, 1)),
    )


def _profile(
    interface: DecoderInterface,
    length: int,
    name: ProfileName,
    *,
    sequences: tuple[int, int, int],
    tokens: tuple[int, int],
) -> EngineProfile:
    """Describe a step of (least, tuned, most) sequences with (least, most) tokens each."""
    least_tokens, most_tokens = tokens
    counts = (least_tokens, most_tokens, most_tokens)

    def over(*dims: tuple[int, int, int]) -> ShapeRange:
        least, tuned, most = zip(*dims, strict=True)
        return ShapeRange(least=least, tuned=tuned, most=most)

    shapes = [interface.cache_shape(batch, length) for batch in sequences]
    cache = ShapeRange(least=shapes[0], tuned=shapes[1], most=shapes[2])
    return EngineProfile(
        name=name,
        inputs={
            INPUT_IDS: over(sequences, counts),
            WRITE_INDICES: over(sequences),
            LOGIT_ROWS: over(sequences),
            **{past: cache for past, _ in interface.cache_names},
        },
    )
