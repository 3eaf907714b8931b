"""`deploy/gpu.yaml` has a GPU compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
