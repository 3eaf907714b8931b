"""`deploy/gpu.yaml` is in order, has a GPU compute, and explains itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.cluster.deploy_file import load_deployment
from serve_app.generation.config import EngineConfig
from serve_app.routing.serving import chosen_backend
from serve_app.settings import Settings

FILE = Path(__file__).parents[3] / "deploy" / "gpu.yaml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))


def settings_and_generator() -> tuple[Settings, dict[str, Any]]:
    deployment = load_deployment(FILE)
    (application,) = deployment.config["applications"]
    (generator,) = (each for each in application["deployments"] if each["name"] == "Generator")
    return deployment.settings, generator


def test_config_check_finds_nothing_wrong() -> None:
    checked = CliRunner().invoke(app, ["config", "check", str(FILE)])
    assert checked.exit_code == 0, checked.output


def test_tensorrt_computes_on_one_gpu_per_replica() -> None:
    settings, generator = settings_and_generator()
    assert chosen_backend(settings) == "tensorrt"
    assert generator["ray_actor_options"]["num_gpus"] == 1
    (application,) = load_deployment(FILE).config["applications"]
    others = [each for each in application["deployments"] if each["name"] != "Generator"]
    assert len(others) == 3
    assert not any("num_gpus" in each["ray_actor_options"] for each in others)


def test_limits_go_together() -> None:
    settings, generator = settings_and_generator()
    limits = EngineConfig.of(settings.generator, max_len=settings.generator.max_len)
    assert limits.max_cached_tokens == limits.slots * limits.max_len
    assert generator["max_ongoing_requests"] > limits.slots + limits.max_queued
    # The address of every slot must be at a multiple of 256 bytes, whatever its heads.
    assert limits.max_len % 64 == 0
    assert limits.prefill_chunk <= limits.max_len


def test_every_value_is_explained_where_it_stands_first() -> None:
    explained, silent, before = {"name"}, [], ""
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if (key := re.match(r"\s*(?:- )?(\w+): \S", line)) and not before.startswith("#"):
            silent += [key[1]] if key[1] not in explained else []
        elif key:
            explained.add(key[1])
        before = line.strip()
    assert silent == []
