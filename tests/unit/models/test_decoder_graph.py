from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import onnx
import pytest
from decoder_run import DecoderRun, open_session
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
    DecoderInterface,
    Form,
)
from serve_app.models.precision.int8 import Int8Blocks
from serve_app.models.precision.named import precision_named

QWEN3 = {"family": "qwen3", "qk_norm": True, "head_dim": 32}
QWEN2 = {"family": "qwen2", "attention_bias": True, "tied_embeddings": True}
MISTRAL = {"family": "mistral", "sliding_window": 8}
FAMILIES = pytest.mark.parametrize(
    "changes", [{}, MISTRAL, QWEN2, QWEN3], ids=["llama", "mistral", "qwen2", "qwen3"]
)
NATIVE = {"form": "native", "precision": "int8"}
KINDS = pytest.mark.parametrize(
    ("form", "precision"), [("cpu", "fp32"), ("cpu", "int8"), ("native", "int8")]
)


def build(
    directory: Path, precision: str = "fp32", form: Form = "cpu", **changes: Any
) -> RandomCheckpoint:
    checkpoint = RandomCheckpoint(tiny_architecture(**changes))
    made = precision_named(precision)  # type: ignore[arg-type]
    build_decoder(checkpoint, form=form, precision=made, directory=directory)
    return checkpoint


def run_of(folder: Path, checkpoint: RandomCheckpoint, form: Form, **sizes: int) -> DecoderRun:
    interface = DecoderInterface.of(checkpoint.architecture, form)
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


@KINDS
def test_tied_embeddings_are_stored_once(tmp_path: Path, form: Form, precision: str) -> None:
    sizes = {}
    for tied in (True, False):
        folder = tmp_path / str(tied)
        folder.mkdir()
        build(folder, precision, form, tied_embeddings=tied, vocab_size=3000)
        sizes[tied] = (folder / DATA_FILE).stat().st_size
    scale_bytes = 2 if form == "native" else 4
    bytes_per_weight = 4 if precision == "fp32" else 1 + scale_bytes / 32
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


@KINDS
def test_no_wanted_rows_are_fine_in_every_precision(
    tmp_path: Path, form: Form, precision: str
) -> None:
    checkpoint = build(tmp_path, precision, form)
    run = run_of(tmp_path, checkpoint, form, slots=2, max_len=16)
    assert run.step([[1, 2, 3], [4, 5, 6]], rows=[]).shape == (0, 300)


@pytest.mark.parametrize("form", ["cpu", "native"])
def test_building_twice_gives_the_same_bytes(tmp_path: Path, form: Form) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build(tmp_path / name, "int8", form, **QWEN3)
        contents.append([(tmp_path / name / file).read_bytes() for file in (GRAPH_FILE, DATA_FILE)])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("form", "precision"), [("cpu", "fp32"), ("native", "int8")])
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
            precision=precision_named(precision),  # type: ignore[arg-type]
            directory=tmp_path,
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
        precision=Int8Blocks(),
        directory=tmp_path,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    total = len(list(checkpoint.architecture.tensors()))
    assert seen == [("writing weights", done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(
    ("arguments", "changes", "fault"),
    [
        ({"form": "gpu"}, {}, "Unknown form 'gpu'; choose one of cpu, native"),
        ({"precision": "int3"}, {}, "Unknown precision 'int3'; choose one of fp32, int8"),
        ({}, {"head_dim": 24}, "multiple of 16 elements, not 24"),
        ({"precision": "int8"}, {"intermediate": 80}, r"down_proj.*rows of 80 elements.*fp32"),
        ({"form": "native"}, {}, "choose precision int8, or the cpu form"),
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
            precision=precision_named(options["precision"]),
            directory=tmp_path,
        )
