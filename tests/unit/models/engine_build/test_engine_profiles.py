"""The profiles cover what the decoder's graph takes, and nothing contradictory gets to TensorRT."""

from __future__ import annotations

import onnx
import pytest
from pydantic import ValidationError

from serve_app.errors import TensorRTEngineError
from serve_app.models.decoder_interface import GRAPH_FILE, DecoderInterface
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.engine_build.profiles import ShapeRange, decoder_profiles
from serve_app.models.store import PreparedModel


def test_every_dynamic_input_of_the_graph_is_in_every_profile(model: PreparedModel) -> None:
    graph = onnx.load(model.path / GRAPH_FILE, load_external_data=False).graph
    profiles = decoder_profiles(model.manifest.interface, slots=8, prefill_chunk=32)
    for profile in profiles:
        assert set(profile.inputs) == {given.name for given in graph.input}
        for given in graph.input:
            dims = given.type.tensor_type.shape.dim
            shapes = profile.inputs[given.name]
            for kind in (shapes.least, shapes.tuned, shapes.most):
                assert len(kind) == len(dims)
                fixed = [(d.dim_value, n) for d, n in zip(dims, kind, strict=True) if d.dim_value]
                assert all(value == number for value, number in fixed)


def test_prefill_takes_a_chunk_of_one_prompt_and_decode_a_token_of_each(
    model: PreparedModel,
) -> None:
    prefill, decode = decoder_profiles(model.manifest.interface, slots=8, prefill_chunk=32)
    assert (prefill.name, prefill.most_sequences, prefill.most_tokens) == ("prefill", 1, 32)
    assert (decode.name, decode.most_sequences, decode.most_tokens) == ("decode", 8, 1)
    assert prefill.inputs["input_ids"] == ShapeRange(least=(1, 1), tuned=(1, 32), most=(1, 32))
    assert decode.inputs["logit_rows"] == ShapeRange(least=(1,), tuned=(8,), most=(8,))
    assert decode.inputs["past.1.value"].most == (8, 2, 64, 16)


def test_other_forms_and_chunks_beyond_the_cache_are_refused(model: PreparedModel) -> None:
    cpu = DecoderInterface.of(model.manifest.architecture, "cpu")
    with pytest.raises(TensorRTEngineError, match="--form standard"):
        decoder_profiles(cpu, slots=8, prefill_chunk=32)
    with pytest.raises(TensorRTEngineError, match="--prefill-chunk"):
        decoder_profiles(model.manifest.interface, slots=8, prefill_chunk=65)


def test_shapes_that_shrink_are_refused() -> None:
    with pytest.raises(ValidationError, match="must not decrease"):
        ShapeRange(least=(2,), tuned=(1,), most=(4,))
    with pytest.raises(ValidationError):
        ShapeRange(least=(1,), tuned=(1, 1), most=(1,))


def test_options_become_flags() -> None:
    assert BuildOptions().flags == ()
    assert BuildOptions(refit="full").flags == ("refit",)
    assert BuildOptions(refit="stripped", weight_streaming=True).flags == (
        "refit",
        "strip_plan",
        "weight_streaming",
    )


@pytest.mark.parametrize(
    ("options", "capability", "reason"),
    [
        (BuildOptions(version_compatible=True, refit="full"), (9, 0), "--version-compatible"),
        (BuildOptions(hardware_compatibility="ampere_plus"), (7, 5), "same_compute_capability"),
    ],
)
def test_what_tensorrt_cannot_do_is_refused_at_once(
    options: BuildOptions, capability: tuple[int, int], reason: str
) -> None:
    with pytest.raises(TensorRTEngineError, match=reason):
        options.require_possible(capability)
    BuildOptions(hardware_compatibility="ampere_plus").require_possible((8, 0))


@pytest.mark.parametrize("fault", [{"optimization_level": 6}, {"workspace_bytes": 0}, {"fp16": 1}])
def test_options_out_of_range_are_refused(fault: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        BuildOptions.model_validate(fault)
