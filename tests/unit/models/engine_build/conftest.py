"""A machine to build on, and a model to build."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_fakes import H100, FakeCompiler, prepare

from serve_app.models.engine_build.machine import Machine
from serve_app.models.store import PreparedModel


@pytest.fixture
def compiler() -> FakeCompiler:
    return FakeCompiler()


@pytest.fixture
def machine(compiler: FakeCompiler) -> Machine:
    return Machine(H100, compiler)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def model(home: Path, tmp_path: Path) -> PreparedModel:
    return prepare(home, tmp_path / "tiny-llama")
