"""The Secrets that `k8s/secrets.sh` makes, made once."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml
from kustomize import K8S, kubectl

from serve_app.state.keys import KeyRing

Manifests = list[dict[str, Any]]


@pytest.fixture(scope="session")
def secret_manifests(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """What k8s/secrets.sh prints."""
    keys = tmp_path_factory.mktemp("secrets") / "keys.json"
    KeyRing(keys).create("first", "default")
    done = subprocess.run(
        ["bash", str(K8S / "secrets.sh"), str(keys)],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": f"{kubectl().parent}:/usr/bin:/bin",
            "METRICS_KEY": "pk-metrics",
            "KUBECONFIG": "/dev/null",
        },
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]
