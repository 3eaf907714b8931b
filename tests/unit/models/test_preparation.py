"""Which form a model is prepared in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from random_checkpoint import RandomCheckpoint, tiny_architecture
from tiny_checkpoints import write_folder

from serve_app.errors import ModelError
from serve_app.kernels import library
from serve_app.models.decoder_interface import Form
from serve_app.models.precision.base import PrecisionName
from serve_app.models.preparation import Preparation
from serve_app.models.store import ModelStore


def form_of(precision: PrecisionName, form: Form | None) -> Form:
    checkpoint = RandomCheckpoint(tiny_architecture())
    return Preparation(checkpoint, precision=precision, form=form).form


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    write_folder(folder)
    return folder


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor on which the operators are fast."""
    monkeypatch.setattr(library, "available", lambda: True)
    monkeypatch.setattr(library, "level", lambda: "avx2")


@pytest.mark.usefixtures("available")
def test_int8_becomes_native_where_that_is_fast_and_fp32_never_does() -> None:
    assert form_of("int8", None) == "native"
    assert form_of("fp32", None) == "cpu"


def test_int8_becomes_cpu_where_the_operators_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "available", lambda: False)
    assert form_of("int8", None) == "cpu"


@pytest.mark.parametrize("form", get_args(Form))
def test_a_form_that_is_asked_for_is_taken_even_where_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    for available, level in ((True, "avx2"), (False, "plain")):
        monkeypatch.setattr(library, "available", lambda available=available: available)
        monkeypatch.setattr(library, "level", lambda level=level: level)
        assert form_of("int8", form) == form


def test_native_is_refused_where_the_operators_were_not_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "_PATH", tmp_path / "missing.so")
    assert form_of("int8", None) == "cpu"
    with pytest.raises(ModelError, match=r"aren't compiled here.*set model\.form to cpu"):
        form_of("int8", "native")


@pytest.mark.usefixtures("available")
def test_each_form_has_its_own_folder(tmp_path: Path, source: Path) -> None:
    store = ModelStore(tmp_path / "home")
    native = store.prepare(str(source), precision="int8")
    cpu = store.prepare(str(source), precision="int8", form="cpu")
    assert (native.manifest.form, cpu.manifest.form) == ("native", "cpu")
    assert native.path.name.startswith("tiny-int8-native-")
    assert native.manifest.interface.cache_dtype == "float16"
    assert {model.path for model in store.list()} == {native.path, cpu.path}
    assert store.prepare(str(source), precision="int8", form="native") == native
    assert store.prepare(str(source), precision="int8", form="cpu") == cpu


@pytest.mark.usefixtures("available")
def test_native_in_fp32_is_refused_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    store = ModelStore(tmp_path / "home")
    with pytest.raises(ModelError, match="choose precision int8, or the cpu or standard form"):
        store.prepare(str(source), precision="fp32", form="native")
    assert [path.name for path in store.root.iterdir()] == [".lock"]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_what_no_other_form_has_becomes_standard(precision: PrecisionName) -> None:
    assert form_of(precision, None) == "standard"


def test_a_standard_model_records_its_cache_length_and_is_found_by_it(
    tmp_path: Path, source: Path
) -> None:
    store = ModelStore(tmp_path / "home")
    model = store.prepare(str(source), precision="fp16", cache_length=64)
    manifest = model.manifest
    assert (manifest.form, manifest.cache_length, manifest.context_length) == ("standard", 64, 64)
    assert model.path.name.startswith("tiny-fp16-standard-64-")
    interface = manifest.interface
    assert (interface.cache_length, interface.cache_dtype) == (64, "float16")
    assert store.prepare(str(source), precision="fp16", cache_length=64) == model
    longer = store.prepare(str(source), precision="fp16", cache_length=96)
    assert {each.path for each in store.list()} == {model.path, longer.path}


def test_a_cache_is_no_longer_than_the_context(tmp_path: Path, source: Path) -> None:
    store = ModelStore(tmp_path / "home")
    model = store.prepare(str(source), precision="fp32", form="standard", cache_length=4096)
    assert model.manifest.cache_length == model.manifest.architecture.context_length == 128
    assert store.prepare(str(source), precision="fp32", form="standard") == model


def test_other_forms_fix_no_cache_length(tmp_path: Path, source: Path) -> None:
    store = ModelStore(tmp_path / "home")
    model = store.prepare(str(source), precision="fp32", cache_length=64)
    assert (model.manifest.form, model.manifest.cache_length) == ("cpu", None)
    assert model.manifest.context_length == 128


def test_a_damaged_standard_model_says_how_to_make_it_anew(tmp_path: Path, source: Path) -> None:
    model = ModelStore(tmp_path / "home").prepare(str(source), precision="bf16", cache_length=64)
    (model.path / "decoder.onnx").unlink()
    again = (
        f"`parley model prepare {source} --precision bf16 --form standard --cache-length 64 "
        "--verify` makes the model anew"
    )
    with pytest.raises(ModelError, match=re.escape(again)):
        model.verify()
