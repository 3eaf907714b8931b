"""`parley doctor` and `parley model build` on a machine that has no GPU, as CI's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import write_folder

from serve_app.errors import GpuUnavailable
from serve_app.gpu.driver import read_driver

Parley = Callable[..., subprocess.CompletedProcess[str]]


def has_gpu() -> bool:
    try:
        read_driver()
    except GpuUnavailable:
        return False
    return True


without_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")


def test_the_doctor_shows_a_table_and_json_and_that_this_machine_can_serve(parley: Parley) -> None:
    shown = parley("doctor")
    assert shown.returncode == 0, shown.stdout
    for name in ("processor", "disk", "Redis", "HAProxy", "GPU", "TensorRT", "models"):
        assert name in shown.stdout
    assert "This machine can serve bundled: int8 in the " in shown.stdout
    seen = json.loads(parley("doctor", "--json").stdout)
    assert seen["can_serve"] is True
    assert seen["plan"]["backend"] == "onnxruntime"
    assert all(finding["advice"] for finding in seen["findings"] if finding["state"] != "ok")


def test_the_doctor_fails_where_the_model_cannot_be_served(parley: Parley) -> None:
    shown = parley("doctor", PARLEY_MODEL_PRECISION="fp16")
    assert shown.returncode == 1
    assert "This machine can't serve it as it is." in shown.stdout
    assert "Set model.form to null" in shown.stdout


@without_gpu
@pytest.mark.parametrize("command", [["build"], ["build", "anything", "--refit", "full"]])
def test_a_build_without_a_gpu_says_at_once_what_is_missing(
    parley: Parley, tmp_path: Path, command: list[str]
) -> None:
    built = parley("model", *command)
    assert built.returncode == 1
    assert "There is no NVIDIA driver here (libcuda.so.1: " in built.stderr
    assert "install NVIDIA's driver, 580 or later" in built.stderr
    assert not (tmp_path / "home" / "models").exists()


def test_a_refit_of_what_is_no_engine_is_refused(parley: Parley, tmp_path: Path) -> None:
    write_folder(tmp_path / "tiny")
    refitted = parley("model", "refit", str(tmp_path / "tiny"), "tiny")
    assert refitted.returncode == 1
    assert "is no engine: manifest.json can't be read" in refitted.stderr
