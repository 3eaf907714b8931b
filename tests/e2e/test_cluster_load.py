"""The load commands that start a cluster of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cluster_home import REPOSITORY, REQUEST_S, START_S

from load.own_cluster import own_cluster

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


def test_a_cluster_that_is_full_refuses_before_it_plans_a_prompt(
    prepared_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(prepared_models.parent))
    messages = [{"role": "user", "content": "Tell me a long story."}]
    two = {"PARLEY_GENERATOR_SLOTS": "1", "PARLEY_GENERATOR_MAX_QUEUED": "1"}
    with (
        own_cluster(two) as cluster,
        httpx.Client(base_url=cluster.url, timeout=REQUEST_S) as http,
    ):
        model = http.get("/models").json()["data"][0]["id"]
        ask = {"model": model, "messages": messages, "max_tokens": 4}
        long = ask | {"max_tokens": 1800, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/chat/completions", json=long) as first:
            assert first.status_code == 200
            tokens = (line for line in first.iter_lines() if '"content"' in line)
            for _ in range(3):  # with its frames the generator tells how full it is
                next(tokens)
            with http.stream("POST", "/chat/completions", json=long) as second:
                assert second.status_code == 200
                for _ in range(3):
                    refused = http.post("/chat/completions", json=ask)
                    assert refused.status_code == 503
                    assert refused.json()["error"]["code"] == "overloaded"
                    assert int(refused.headers["retry-after"]) >= 1
                    # What has been planned has an account, however it ended.
                    name = refused.headers["x-request-id"]
                    assert http.get(f"/requests/{name}/account").status_code == 404
        deadline = time.monotonic() + REQUEST_S
        while (answer := http.post("/chat/completions", json=ask)).status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert answer.status_code == 200
