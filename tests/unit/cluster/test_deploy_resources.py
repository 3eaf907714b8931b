"""Models and engines that a deploy file names and this machine lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cluster.deploy_file import load_deployment
from serve_app.cluster.deploy_resources import require_resources
from serve_app.errors import ConfigError, GpuUnavailable, TensorRTUnavailable
from serve_app.gpu.driver import Driver, Gpu
from serve_app.settings import deploy_folder

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000, 80_000_000_000)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path / "home"))


def no_driver() -> Driver:
    msg = "no driver"
    raise GpuUnavailable(msg)


def no_tensorrt() -> str:
    msg = "no TensorRT"
    raise TensorRTUnavailable(msg)


def edited(tmp_path: Path, name: str, old: str, new: str) -> Path:
    text = (deploy_folder() / f"{name}.yaml").read_text()
    assert old in text
    file = tmp_path / "edited.yaml"
    file.write_text(text.replace(old, new, 1))
    return file


def line_of(file: Path, text: str) -> int:
    return next(n for n, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def notes(file: Path, *, gpu: bool = False) -> list[str]:
    if not gpu:
        return require_resources(
            load_deployment(file), ask_driver=no_driver, ask_tensorrt=no_tensorrt
        )
    return require_resources(
        load_deployment(file),
        ask_driver=lambda: Driver("580.65.06", (13, 0), (H100,)),
        ask_tensorrt=lambda: "11.4.0.106",
    )


def refusal(file: Path, *, gpu: bool = False) -> str:
    with pytest.raises(ConfigError) as refused:
        notes(file, gpu=gpu)
    return refused.value.message


@pytest.mark.parametrize("place", ["        source:", "            source:"])
def test_a_model_that_is_not_there_is_named_with_its_line(tmp_path: Path, place: str) -> None:
    old = f"\n{place} bundled"
    file = edited(tmp_path, "several-models", old, f"\n{place} /nowhere/model.gguf")
    told = refusal(file)
    assert f"{file}:{line_of(file, '/nowhere/model.gguf')}: " in told
    assert "There is no model at /nowhere/model.gguf" in told


def test_a_model_of_the_hub_is_taken_on_trust(tmp_path: Path) -> None:
    assert notes(edited(tmp_path, "several-models", "source: bundled", "source: org/name")) == []


def test_a_folder_of_engines_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    file = edited(tmp_path, "gpu-pool", "engines: null", "engines: /nowhere")
    told = refusal(file)
    assert f"{file}:{line_of(file, 'engines: /nowhere')}: " in told
    assert "there is no folder /nowhere" in told


def test_engines_are_looked_for_where_there_is_a_gpu(tmp_path: Path) -> None:
    file = edited(tmp_path, "gpu-pool", "engines: null", f"engines: {tmp_path}")
    told = refusal(file, gpu=True)
    assert f"{file}:{line_of(file, 'form: standard')}: " in told
    assert "`parley model build`" in told
    assert [note.split()[0] for note in notes(file)] == ["Generator", "Generator-small"]
