"""A service in a made-up cluster: the manifests of `k8s/`, and who may do what `k8s/operator` grants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_api_server import TOKEN, ApiServer
from fake_kuberay import KubeRay, service_objects
from kustomize import build
from typer.testing import CliRunner, Result

from serve_app.cli import app
from serve_app.operations.cluster_api import ClusterApi


@pytest.fixture(scope="session")
def rules() -> dict[str, list[dict[str, Any]]]:
    """The rules of the Role and of the ClusterRole, by kind."""
    return {one["kind"]: one["rules"] for one in build("operator") if one["kind"].endswith("Role")}


@pytest.fixture(scope="session")
def manifests() -> list[dict[str, Any]]:
    return service_objects(build("overlays/gpu-pool"))


@pytest.fixture
def server(
    manifests: list[dict[str, Any]], rules: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.users[TOKEN] = [rule for granted in rules.values() for rule in granted]
        for one in manifests:
            running.store.add(one)
        for pod in ("head", "cpu-a", "cpu-b", "gpu-a", "gpu-b"):
            disk = tmp_path / f"parley-x1-{pod}"
            (disk / "session_latest" / "logs" / "serve").mkdir(parents=True)
            (disk / "bin").mkdir()
            running.disks[f"parley-x1-{pod}"] = disk
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def kuberay(server: ApiServer) -> Iterator[KubeRay]:
    """The operator, which acts on every change of the RayService."""
    operator = KubeRay(server.store)
    server.on_patch = operator.reconcile
    yield operator
    operator.finish()


@pytest.fixture
def kubeconfig(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "parley"}},
            {"name": "stranger", "context": {"cluster": "here", "user": "stranger"}},
            {"name": "gone", "context": {"cluster": "gone", "user": "me"}},
        ],
        "clusters": [
            {"name": "here", "cluster": {"server": server.url}},
            {"name": "gone", "cluster": {"server": "http://127.0.0.1:9"}},
        ],
        "users": [
            {"name": "me", "user": {"token": TOKEN}},
            {"name": "stranger", "user": {"token": "nobody"}},
        ],
    }
    file.write_text(yaml.safe_dump(content))
    # What the client has read from the environment when it was imported is not looked at again.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    return file


@pytest.fixture
def api(kubeconfig: Path) -> Iterator[ClusterApi]:
    with ClusterApi() as cluster:
        yield cluster


@pytest.fixture
def ops(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `parley ops …` in this process."""
    monkeypatch.setattr("serve_app.operations.following.SETTLE_S", 0.05)
    monkeypatch.setattr("serve_app.operations.following.LOOK_S", 0.05)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["ops", *arguments], env={"COLUMNS": "300"})

    return run
