"""Locust's users against a server, through real HTTP, and what they are judged by."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai_server import WORDS, answer, refusing
from sse_server import Answer, Request, serving

from serve_app.api.body import parse_body
from serve_app.api.chat import ChatCompletionRequest
from serve_app.api.completions import CompletionRequest
from serve_app.api.conversations import ConversationRequest
from serve_app.api.responses import ResponseRequest

ROOT = Path(__file__).parents[3]
BODIES: dict[str, Any] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/conversations": ConversationRequest,
}
EVERYBODY = ("talker", "reader", "impatient", "commuter")


@dataclass
class Run:
    code: int
    said: str
    rows: dict[tuple[str, str], dict[str, str]]
    report: str
    requests: list[Request]
    connections: int


async def swarm(answering: Answer, folder: Path, *arguments: str) -> Run:
    """Run Locust for some seconds against a server that answers so."""
    async with serving(answering) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "locust", "-f", "load/locustfile.py", "--headless"),
            *("--host", server.url.removesuffix("/v1"), "--think", "0", "--stop-timeout", "2"),
            *("--csv", str(folder / "run"), "--html", str(folder / "run.html"), *arguments),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    said = output.decode()
    assert (folder / "run_stats.csv").exists(), said
    with (folder / "run_stats.csv").open() as file:
        rows = {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}
    report = (folder / "run.html").read_text()
    assert process.returncode is not None
    return Run(process.returncode, said, rows, report, server.requests, server.connections)


async def test_every_api_and_persona_has_its_rows_and_limits_that_hold_pass(
    tmp_path: Path,
) -> None:
    run = await swarm(
        answer,
        tmp_path,
        *("-u", "12", "-r", "12", "-t", "2s", "--max-ttft-p95-ms", "5000"),
        *(
            "--max-inter-token-p99-ms",
            "5000",
            "--max-error-percent",
            "0",
            "--min-tokens-per-s",
            "1",
        ),
    )
    assert run.code == 0, run.said
    assert run.said.count("held") == 4
    apis = {name.split()[0] for _, name in run.rows if name != "Aggregated"}
    assert apis == {"chat", "completions", "conversations"}
    assert {name.split()[1] for _, name in run.rows if name != "Aggregated"} == set(EVERYBODY)
    kinds = {kind for kind, name in run.rows if name != "Aggregated"}
    assert kinds == {"reply", "TTFT", "inter-token", "tokens", "cancel"}
    for (kind, _), row in run.rows.items():
        assert row["Failure Count"] == "0"
        if kind == "tokens":
            assert float(row["Average Response Time"]) == len(WORDS)
    # A reply is one request, whatever else is said of it.
    replies = sum(
        int(row["Request Count"]) for (kind, _), row in run.rows.items() if kind == "reply"
    )
    assert int(run.rows["", "Aggregated"]["Request Count"]) == replies > 0
    assert "TTFT" in run.report
    # Parley takes what they send.
    for request in run.requests:
        if (kind_of_body := BODIES.get(request.path)) is not None:
            parse_body(json.dumps(request.body).encode(), kind_of_body, max_depth=32)
    # Stored conversations are sent nothing but what is new, and are taken away again.
    stored = [request for request in run.requests if request.path == "/v1/responses"]
    assert stored
    assert {request.body["conversation"] for request in stored} == {"conv_1"}
    assert {len(request.body["input"]) for request in stored} == {1}
    assert any(request.method == "DELETE" for request in run.requests)
    assert run.connections > 12  # some come back over a new one


async def test_a_limit_that_breaks_makes_the_exit_code_1(tmp_path: Path) -> None:
    run = await swarm(
        refusing(3),
        tmp_path,
        *("ChatUser", "-u", "2", "-r", "2", "-t", "1s", "--personas", "talker"),
        *("--max-error-percent", "5", "--max-ttft-p95-ms", "5000"),
    )
    assert run.code == 1, run.said
    assert run.said.count("BROKEN") == 1
    assert "503 overloaded" in run.said


async def test_a_persona_that_nobody_has_is_refused_before_anybody_talks() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "locust", "-f", "load/locustfile.py", "--headless"),
        *("--host", "http://127.0.0.1:9", "--personas", "talker,ghost"),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"'ghost'; choose among talker, reader" in said


SHAPED = """
from load.swarm.shapes import SHAPES
print({name: [round(100 * at(part / 20)) for part in range(20)] for name, at in SHAPES.items()})
"""


@pytest.fixture(scope="module")
def shares() -> dict[str, list[int]]:
    """What each shape says over its time, from a process of its own: Locust patches sockets."""
    import ast
    import subprocess

    said = subprocess.run(
        [sys.executable, "-c", SHAPED],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    shapes: dict[str, list[int]] = ast.literal_eval(said.stdout)
    return shapes


def test_every_shape_reaches_its_peak_and_none_goes_beyond(shares: dict[str, list[int]]) -> None:
    assert set(shares) == {"constant", "steps", "spike", "soak", "diurnal"}
    assert all(max(shape) == 100 and min(shape) >= 0 for shape in shares.values())


def test_the_shapes_are_what_they_are_called(shares: dict[str, list[int]]) -> None:
    assert set(shares["constant"]) == {100}
    assert sorted(set(shares["steps"])) == [20, 40, 60, 80, 100] == list(shares["steps"][::4])
    assert shares["spike"] == [10] * 8 + [100] * 4 + [10] * 8
    assert shares["soak"][1:] == [100] * 19
    assert shares["diurnal"][0] == 10
    assert shares["diurnal"][10] == 100
    assert shares["diurnal"][5] == shares["diurnal"][15] == 55
