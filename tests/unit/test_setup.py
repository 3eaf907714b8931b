"""What a fresh clone installs and loads: for which Pythons, and nothing that a CPU has no use for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = SpecifierSet(PROJECT["requires-python"])
# What a build of torch for GPUs requires besides.
CUDA = re.compile(r"nvidia-|cuda-|triton$")


def locked(name: str) -> dict[str, str]:
    """Return the versions that a lock has for this Python, by package."""
    lock = (REPOSITORY / name).read_text("utf-8")
    lines = re.findall(r"^([a-z0-9][^\\\n]*?) \\\n    --hash=sha256:", lock, re.MULTILINE)
    requirements = [Requirement(line) for line in lines]
    return {
        one.name: next(iter(one.specifier)).version
        for one in requirements
        if one.marker is None or one.marker.evaluate()
    }


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 11, 0), (3, 13, 9), (3, 14, 0)])
def test_make_refuses_the_pythons_that_pip_would_refuse_later(
    tmp_path: Path, version: tuple[int, int, int]
) -> None:
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "if sys.argv[1] == '-c':\n"
        f"    sys.version_info = {version}\n"
        "    exec(sys.argv[2])\n"
    )
    python.chmod(0o755)
    folder = tmp_path / "venv"
    made = subprocess.run(
        ["make", f"PYTHON={python}", f"VENV={folder}", f"{folder}/bin/pip"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    accepted = ".".join(map(str, version)) in PYTHONS
    assert (made.returncode == 0) == accepted, made.stderr
    says = f"needs Python 3.11, 3.12 or 3.13, and this is {version[0]}.{version[1]}: run make with"
    assert (says in made.stderr) == (not accepted)


def test_the_readme_names_the_pythons_that_are_supported() -> None:
    supported = [f"3.{minor}" for minor in range(30) if f"3.{minor}.5" in PYTHONS]
    named = f"{', '.join(supported[:-1])} or {supported[-1]}"
    assert f"Python {named}" in (REPOSITORY / "README.md").read_text("utf-8")


def test_the_default_install_has_no_torch_and_nothing_for_gpus() -> None:
    packages = locked("requirements.lock")
    assert {"ray", "onnxruntime", "transformers"} <= packages.keys()
    unwanted = re.compile(rf"torch|tensorrt|cupy|{CUDA.pattern}")
    assert [name for name in packages if unwanted.match(name)] == []


def test_what_a_gpu_needs_is_locked_on_top_of_what_serving_needs() -> None:
    serving, gpu = locked("requirements.lock"), locked("gpu.lock")
    assert {name: gpu.get(name) for name in serving} == serving
    extra = [Requirement(line) for line in PROJECT["optional-dependencies"]["gpu"]]
    assert {one.name for one in extra} == {"tensorrt-cu13", "torch"}
    assert [one for one in extra if gpu[one.name] not in one.specifier] == []
    assert {"tensorrt-cu13-libs", "nvidia-cuda-runtime"} <= gpu.keys()


@pytest.mark.parametrize("package", ["ingress", "dialogue", "tokenization", "generation"])
def test_a_replica_imports_no_torch(package: str) -> None:
    assert find_spec("torch") is not None  # or there would be nothing to import
    code = (
        f"import sys, serve_app.{package}.deployment\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    imported = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "ray" in imported
    assert {"torch", "tensorrt"}.isdisjoint(imported)


def test_all_that_torch_requires_is_locked_with_hashes() -> None:
    packages = locked("requirements-dev.lock")
    assert {"mpmath", "markupsafe"} <= packages.keys()  # what its requirements require
    environment = {**default_environment(), "extra": ""}
    required = [Requirement(line) for line in metadata.requires("torch") or []]
    needed = [
        one
        for one in required
        if (one.marker is None or one.marker.evaluate(environment)) and not CUDA.match(one.name)
    ]
    assert "sympy" in {one.name for one in needed}
    assert [one for one in needed if packages.get(one.name, "0") not in one.specifier] == []
