from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sse_server import Request, SseServer, chat, refusal, serving
from typer.testing import CliRunner, Result

from load import bench, engine
from load.bare_engine import engine_settings
from load.http_client import RequestFailed
from load.report import console
from serve_app.errors import ConfigError
from serve_app.models.store import PreparedModel

SHORT = ["--turns", "2", "--output-tokens", "4", "--rounds", "1", "--concurrency", "1,2"]
# A model that the server fails in every second turn.
FORGETFUL = "forgetful"
PERCENTILES = {"p50", "p95", "p99"}


@pytest.fixture
def server() -> Iterator[SseServer]:
    """A server in a thread of its own, which lists a model and answers in four words."""
    loop = asyncio.new_event_loop()
    started: list[SseServer] = []
    ready, done = threading.Event(), asyncio.Event()

    def answer(got: Request) -> Sequence[bytes]:
        if got.method == "GET":
            return [refusal(200, {"data": [{"id": "listed"}]})]
        if got.body["model"] == FORGETFUL and len(got.body["messages"]) > 2:
            return [refusal(503, {"error": {"code": "overloaded"}})]
        return chat(["one ", "two ", "three ", "four"])

    async def serve() -> None:
        async with serving(answer) as running:
            started.append(running)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield started[0]
    loop.call_soon_threadsafe(done.set)
    thread.join(10)
    loop.close()


@pytest.fixture(autouse=True)
def bundled_home(prepared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(prepared_home))


def run(app: object, *arguments: str) -> tuple[Result, str]:
    """Run a command and return what it printed as well."""
    with console.capture() as printed:
        result = CliRunner().invoke(app, arguments)  # type: ignore[arg-type]
    return result, printed.get()


def test_bench_prints_a_table_and_writes_json(server: SseServer, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result, printed = run(bench.app, "--url", server.url, *SHORT, "--json", str(path))
    assert result.exit_code == 0, result.output
    for row in ("output tok/s", "TTFT, ms p99", "inter-token, ms p50", "from a cache", "errors"):
        assert row in printed
    assert "of earlier turns' own" in printed
    report = json.loads(path.read_bytes())
    one, two = report["http"]
    assert (one["concurrency"], two["concurrency"]) == (1, 2)
    assert (one["replies"], two["replies"]) == (2, 4)
    assert two["tokens"] == {
        "prompt": 40,
        "cached": 16,
        "completion": 16,
        "held": 20,
        "spared": 8,
    }
    assert two["arrivals"] == 16
    assert set(two["ttft_ms"]) == set(two["inter_token_ms"]) == PERCENTILES
    assert server.requests[-1].body["model"] == "listed"


def test_bench_compares_with_the_bare_engine(
    server: SseServer, tmp_path: Path, bundled_int8: PreparedModel
) -> None:
    path = tmp_path / "report.json"
    result, printed = run(
        bench.app, "--url", server.url, *SHORT, "--with-engine", "--json", str(path)
    )
    assert result.exit_code == 0, result.output
    assert "through HTTP / bare engine" in printed
    assert "outside the runtime" in printed
    assert "with prompts, ms/step" in printed
    assert "billion operations/s (8-bit blocks)" in printed
    report = json.loads(path.read_bytes())
    assert [one["level"]["replies"] for one in report["engine"]["levels"]] == [2, 4]
    assert report["engine"]["machine"]["read_bytes_per_s"] > 0
    assert report["engine"]["model"].startswith(bundled_int8.manifest.name)


def test_the_bare_engine_runs_the_bundled_model(
    tmp_path: Path, bundled_int8: PreparedModel
) -> None:
    path = tmp_path / "report.json"
    result, _ = run(
        engine.app, *SHORT, "--precision", "int8", "--threads", "1", "--json", str(path)
    )
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_bytes())
    assert report["engine"]["threads"] == 1
    one, two = report["engine"]["levels"]
    assert one["level"]["tokens"]["completion"] == 2 * 4
    assert two["level"]["tokens"]["completion"] == 4 * 4
    assert one["level"]["tokens"]["cached"] > 0
    assert 0 < one["outside_s"] < one["busy_s"]
    assert one["floor"]["decode_read_s"] > 0
    assert one["floor"]["mixed_compute_s"] > 0
    assert one["work"]["mixed_s"] > 0


def test_bench_fails_where_a_reply_fails(server: SseServer) -> None:
    result, printed = run(bench.app, "--url", server.url, *SHORT, "--model", FORGETFUL)
    assert result.exit_code == 1
    assert "503 overloaded" in printed


def test_bench_fails_where_nobody_is_answered(server: SseServer) -> None:
    result, _ = run(bench.app, "--url", server.url, *SHORT, "--mode", "responses")
    assert isinstance(result.exception, RequestFailed)


@pytest.mark.parametrize("levels", ["", "0", "1,,2", "many"])
def test_levels_that_are_no_numbers_are_refused(levels: str) -> None:
    result, _ = run(engine.app, "--concurrency", levels)
    assert result.exit_code == 2
    assert "no list of numbers" in result.output


def test_a_key_that_is_not_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    result, _ = run(bench.app, "--api-key-env", "NO_SUCH_KEY")
    assert isinstance(result.exception, ConfigError)
    assert "NO_SUCH_KEY" in result.exception.message


def test_the_key_goes_into_the_header(server: SseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    result, _ = run(bench.app, "--url", server.url, *SHORT, "--api-key-env", "SOME_KEY")
    assert result.exit_code == 0
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer secret"}


def test_options_go_above_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_GENERATOR_SLOTS", "3")
    assert engine_settings(generator={"slots": None}).generator.slots == 3
    assert engine_settings(generator={"slots": 5}).generator.slots == 5


def test_an_option_that_makes_no_sense_is_named() -> None:
    with pytest.raises(ConfigError, match="slots"):
        engine_settings(generator={"slots": -1})
