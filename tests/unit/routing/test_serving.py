"""What this machine can't serve is refused before anything starts, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write_folder

from serve_app.errors import ConfigError, GpuUnavailable, TensorRTEngineError
from serve_app.generation.backends.opening import open_backend
from serve_app.gpu.driver import Gpu
from serve_app.models.engine_build import machine as machine_module
from serve_app.models.engine_build.compiler import BuildRequest, PhaseListener
from serve_app.models.engine_build.machine import Machine
from serve_app.models.store import ModelStore
from serve_app.routing.serving import (
    chosen_backend,
    require_engine,
    require_servable,
    served_model,
)
from serve_app.settings import Settings

STANDARD: list[dict[str, Any]] = [
    {"precision": "fp16"},
    {"precision": "bf16"},
    {"precision": "fp8"},
    {"precision": "int8", "form": "standard"},
    {"precision": "fp32", "form": "standard"},
]


class NoBuilds:
    """A TensorRT that nobody has build anything."""

    version = "11.4.0.106"

    def build(self, request: BuildRequest, listener: PhaseListener) -> bytes:
        raise AssertionError

    def refit(self, plan: Path, graph: Path, refitted: Path) -> None:
        raise AssertionError


def no_gpu() -> Machine:
    msg = "There is no NVIDIA driver here: install it."
    raise GpuUnavailable(msg)


@pytest.mark.parametrize("model", STANDARD)
def test_the_standard_form_without_a_gpu_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    monkeypatch.setattr(machine_module, "open_machine", no_gpu)
    asked = r"install it\..* set model\.precision to int8 or fp32"
    with pytest.raises(ConfigError, match=asked) as refused:
        require_servable(Settings.load({"model": model}))
    assert refused.value.param == "model.form"


@pytest.mark.parametrize("model", STANDARD)
def test_the_standard_form_is_for_tensorrt(model: dict[str, Any]) -> None:
    assert chosen_backend(Settings.load({"model": model})) == "tensorrt"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("form", [None, "cpu"])
def test_other_forms_ask_for_no_gpu(
    monkeypatch: pytest.MonkeyPatch, precision: str, form: str | None
) -> None:
    monkeypatch.setattr(machine_module, "open_machine", no_gpu)
    settings = Settings.load({"model": {"precision": precision, "form": form}})
    assert chosen_backend(settings) == "onnxruntime"
    assert require_servable(settings) is None


def test_noise_asks_for_no_gpu_whatever_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "open_machine", no_gpu)
    model = {"precision": "fp16", "name": "simulated"}
    settings = Settings.load({"model": model, "generator": {"backend": "simulated"}})
    assert require_servable(settings) is None


def test_a_gpu_without_an_engine_is_refused_with_how_to_build_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path / "home"))
    found = Machine(Gpu("NVIDIA L4", (8, 9), 24_000_000_000), NoBuilds())
    monkeypatch.setattr(machine_module, "open_machine", lambda: found)
    write_folder(tmp_path / "tiny")
    model = {"source": str(tmp_path / "tiny"), "precision": "fp16"}
    settings = Settings.load({"model": model, "generator": {"max_len": 64}})
    prepared = served_model(settings)
    assert prepared.manifest.cache_length == 64
    assert require_servable(settings) is found
    with pytest.raises(TensorRTEngineError, match=r"There is no engine in .*`parley model build`"):
        require_engine(prepared, found, settings)


def test_a_generator_without_a_gpu_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_driver() -> None:
        msg = "There is no NVIDIA driver here: install it."
        raise GpuUnavailable(msg)

    monkeypatch.setattr(machine_module, "read_driver", no_driver)
    write_folder(tmp_path / "tiny")
    store = ModelStore(tmp_path / "home")
    model = store.prepare(str(tmp_path / "tiny"), precision="fp16", cache_length=64)
    with pytest.raises(GpuUnavailable, match="install it"):
        open_backend(model, threads=1)
