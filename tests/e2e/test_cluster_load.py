"""The load commands that start a cluster of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_home import REPOSITORY, START_S

pytestmark = pytest.mark.usefixtures("alone")


def measure(models: Path, report: Path, module: str, *arguments: str) -> dict[str, Any]:
    """Run a load command to its end, make sure that nothing of it runs on, and return its report."""
    mark = uuid.uuid4().hex
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")}
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--json", str(report)],
        env={**clean, "PARLEY_HOME": str(models.parent), "MEASURED": mark},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    left = [
        process
        for process in psutil.process_iter(["environ", "status"])
        if (process.info["environ"] or {}).get("MEASURED") == mark
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
    assert left == []
    found: dict[str, Any] = json.loads(report.read_bytes())
    return found


def test_the_serving_path_is_measured_with_an_event_per_token(
    prepared_models: Path, tmp_path: Path
) -> None:
    small = ("--concurrency", "8", "--rounds", "1", "--output-tokens", "32")
    found = measure(prepared_models, tmp_path / "serving.json", "load.serving", *small)
    assert found["http"]["errors"] == {}
    assert found["http"]["replies"] == 8
    assert found["http"]["arrivals"] == found["http"]["tokens"]["completion"] == 8 * 32
    assert {"Ingress", "Generator", "haproxy", "the clients"} <= found["processor_s"].keys()


def test_a_start_is_timed_to_its_first_answer_and_all_of_its_processes_are_weighed(
    prepared_models: Path, tmp_path: Path
) -> None:
    small = ("--streams", "4", "--output-tokens", "16")
    found = measure(prepared_models, tmp_path / "startup.json", "load.startup", *small)
    assert found["errors"] == {}
    assert found["streams"] == 4
    assert 0 < found["serving_s"] < found["first_answer_s"]
    first, highest = (found["memory_bytes"][when] for when in ("first_answer", "highest"))
    expected = {"Ingress", "Generator", "haproxy", "redis-server", "raylet", "serve_app.cli"}
    assert expected <= first.keys()
    assert min(highest[kind] for kind in expected) > 0
    assert found["highest_memory_bytes"] == sum(highest.values()) > highest["Generator"]
