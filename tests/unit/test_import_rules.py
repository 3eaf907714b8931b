"""`make check` notices an import that breaks a rule: the contracts of pyproject.toml, tried out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the code, to be spoilt."""
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(
        REPOSITORY / "serve_app",
        tmp_path / "serve_app",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return tmp_path


def test_the_code_keeps_every_rule(copy: Path) -> None:
    linted = lint(copy)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("module", "imported", "rule"),
    [
        ("generation/outbox.py", "serve_app.api.sse", "Of the deployments only the ingress"),
        ("tokenization/tokenizer.py", "serve_app.api.chat", "Of the deployments only the ingress"),
        ("dialogue/planner.py", "serve_app.api.items", "Of the deployments only the ingress"),
        ("generation/engine.py", "serve_app.dialogue.planner", "Each floor imports only"),
        ("dialogue/manager.py", "serve_app.generation.engine", "Each floor imports only"),
        ("models/store.py", "serve_app.messages.generation", "Each floor imports only"),
        ("web/page.py", "serve_app.errors", "Each floor imports only"),  # a package on no floor
        (
            "dialogue/nlu/codes.py",
            "serve_app.dialogue.personas.schema",
            "The policy knows personas",
        ),
        ("dialogue/manager.py", "redis.asyncio", "Only state talks to Redis"),
        ("web/page.py", "redis", "Only state talks to Redis"),
        ("ingress/gate.py", "opentelemetry.trace", "Only telemetry.otel talks to OpenTelemetry"),
        ("models/gguf_file.py", "torch", "Serving on a CPU imports no torch"),
        ("generation/backends/base.py", "tensorrt", "Serving on a CPU imports no torch"),
    ],
)
def test_an_import_that_breaks_a_rule_is_noticed(
    copy: Path, module: str, imported: str, rule: str
) -> None:
    file = copy / "serve_app" / module
    if not file.parent.exists():
        file.parent.mkdir()
        (file.parent / "__init__.py").touch()
    with file.open("a") as text:
        text.write(f"\nimport {imported}\n")
    linted = lint(copy)
    assert linted.returncode == 1
    broken = [line for line in linted.stdout.splitlines() if " BROKEN" in line]
    assert any(line.startswith(rule) for line in broken), linted.stdout
