"""The deploy files that ship are in order, and explain themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.cluster.deploy_file import load_deployment
from serve_app.routing.serving import chosen_backend
from serve_app.settings import deploy_folder

FILES = ("local", "several-models", "gpu", "gpu-pool")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))


def file_of(name: str) -> Path:
    return deploy_folder() / f"{name}.yaml"


def deployments_of(file: Path) -> dict[str, dict[str, Any]]:
    (application,) = yaml.safe_load(file.read_text())["applications"]
    return {each["name"]: each for each in application["deployments"]}


@pytest.mark.parametrize("name", FILES)
def test_config_check_finds_nothing_wrong(name: str) -> None:
    checked = CliRunner().invoke(app, ["config", "check", str(file_of(name))])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("name", FILES)
def test_every_deployment_of_its_models_and_pools_is_described(name: str) -> None:
    loaded = load_deployment(file_of(name))
    wanted = {"Ingress", "Dialogue"}
    for model in loaded.models:
        wanted |= {model.tokenizer, *(pool.deployment for pool in model.pools)}
    assert {*deployments_of(file_of(name))} == wanted


@pytest.mark.parametrize("name", FILES)
def test_every_value_is_explained_where_it_stands_first(name: str) -> None:
    explained, silent, before = {"name"}, [], ""
    for line in file_of(name).read_text(encoding="utf-8").splitlines():
        if (key := re.match(r"\s*(?:- )?(\w+): \S", line)) and not before.startswith("#"):
            silent += [key[1]] if key[1] not in explained else []
        elif key:
            explained.add(key[1])
        before = line.strip()
    assert silent == []


@pytest.mark.parametrize("name", FILES)
def test_who_stands_in_front_is_replaced_without_a_gap(name: str) -> None:
    for deployment in deployments_of(file_of(name)).values():
        if not deployment["name"].startswith("Generator"):
            assert deployment["max_surge_percent"] == 100, deployment["name"]


def test_a_pool_of_gpus_serves_a_large_and_a_small_model() -> None:
    loaded = load_deployment(file_of("gpu-pool"))
    assert [model.key for model in loaded.models] == ["", "small"]
    assert {chosen_backend(model.settings) for model in loaded.models} == {"tensorrt"}
    gpus = {
        name: each["ray_actor_options"].get("num_gpus")
        for name, each in deployments_of(file_of("gpu-pool")).items()
    }
    assert (gpus["Generator"], gpus["Generator-small"]) == (1, 0.5)
    assert loaded.gpus == 8 * 1 + 4 * 0.5
    checked = CliRunner().invoke(app, ["config", "check", str(file_of("gpu-pool"))])
    assert "and 10 GPUs." in " ".join(checked.output.split())
    for model in loaded.models:
        engine = model.settings.generator
        assert engine.max_cached_tokens == engine.slots * engine.max_len
        timeout_s = deployments_of(file_of("gpu-pool"))[model.pools[0].deployment][
            "graceful_shutdown_timeout_s"
        ]
        assert timeout_s > engine.drain_timeout_s


def test_the_mixed_pool_that_is_commented_out_is_in_order(tmp_path: Path) -> None:
    text = file_of("gpu-pool").read_text()
    text = text.replace("        pools: {}\n", "")
    start, end = text.index("        # pools:\n"), text.index("      sampling:\n")
    text = text[:start] + re.sub(r"(?m)^        # ", "        ", text[start:end]) + text[end:]
    start = text.index("      # - name: Generator-cpu")
    text = text[:start] + re.sub(r"(?m)^      # ", "      ", text[start:])
    file = tmp_path / "mixed.yaml"
    file.write_text(text)
    checked = CliRunner().invoke(app, ["config", "check", str(file)])
    assert checked.exit_code == 0, checked.output
    first, _ = load_deployment(file).models
    assert [chosen_backend(pool.settings) for pool in first.pools] == ["tensorrt", "onnxruntime"]
    assert deployments_of(file).keys() >= {pool.deployment for pool in first.pools}
