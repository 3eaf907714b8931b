"""`parley doctor` and `parley model build` on a machine that has no GPU, as CI's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import write_folder
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.errors import GpuUnavailable
from serve_app.gpu.driver import Gpu, read_driver
from serve_app.models.engine_build import machine
from serve_app.models.engine_build.compiler import BuildRequest, PhaseListener
from serve_app.models.engine_build.machine import Machine
from serve_app.models.engine_build.options import BuildOptions

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
    assert "`parley model build`" in shown.stdout


@pytest.fixture
def built_with(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """Have the commands of this process find a GPU and a TensorRT that builds nothing; return its builds."""
    requests: list[BuildRequest] = []

    class Compiler:
        version = "11.4.0.106"

        def build(self, request: BuildRequest, listener: PhaseListener) -> bytes:
            listener.phase_started("Building Engine", None, 1)
            listener.step_completed("Building Engine", 0)
            request.plan.write_bytes(b"plan")
            requests.append(request)
            return b"measured"

        def refit(self, plan: Path, graph: Path, refitted: Path) -> None:
            refitted.write_bytes(plan.read_bytes())

    found = Machine(Gpu("NVIDIA L4", (8, 9), 24_000_000_000), Compiler())
    monkeypatch.setattr(machine, "open_machine", lambda: found)
    return requests


def test_the_model_of_the_settings_is_prepared_built_and_refitted(
    built_with: list[BuildRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "tiny")
    for name, value in (
        ("PARLEY_HOME", str(tmp_path / "home")),
        ("PARLEY_MODEL_SOURCE", str(tmp_path / "tiny")),
        ("PARLEY_MODEL_ENGINES", str(tmp_path / "engines")),
        ("PARLEY_GENERATOR_SLOTS", "5"),
    ):
        monkeypatch.setenv(name, value)
    options = ("--refit", "full", "--workspace-mb", "64", "--optimization-level", "5")
    built = CliRunner().invoke(app, ["model", "build", *options])
    assert built.exit_code == 0, built.output
    (request,) = built_with
    assert request.options == BuildOptions(
        refit="full", workspace_bytes=64 << 20, optimization_level=5
    )
    prefill, decode = request.profiles
    assert (prefill.most_tokens, decode.most_sequences) == (128, 5)
    (engine,) = (tmp_path / "engines").glob("*/sm89-*")
    model = request.graph.parent
    refitted = CliRunner().invoke(app, ["model", "refit", str(engine), str(model)])
    assert refitted.exit_code == 0, refitted.output
    assert [path.name for path in (model / "engines").glob("sm89-*")] == [engine.name]


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
