"""Spans reach a collector by OTLP over HTTP; one that is away costs nobody anything."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingress_harness import MODEL, service, settings_with, simulated, wait_until
from otlp_receiver import otlp_receiver

from serve_app import __version__
from serve_app.errors import ConfigError
from serve_app.settings import Settings, TelemetrySettings
from serve_app.telemetry import tracing
from serve_app.telemetry.origin import Origin, within
from serve_app.telemetry.otel import OtelRecorder

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PROMPT = "My secret wish is to see whales."


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    recorder = tracing._recorder
    tracing.use(None)
    if isinstance(recorder, OtelRecorder):
        recorder.shut_down()


def start(endpoint: str) -> OtelRecorder:
    settings = TelemetrySettings(traces=True, trace_endpoint=endpoint)
    tracing.start(settings, deployment="Dialogue", replica="r1")
    recorder = tracing._recorder
    assert isinstance(recorder, OtelRecorder)
    return recorder


def test_the_spans_of_a_request_reach_a_collector_without_its_text(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    with (
        otlp_receiver() as receiver,
        service(
            bundled_tokenizer,
            tmp_path,
            settings=settings_with(responses={"store": False}),
            backends=[simulated()],
        ) as running,
    ):
        start(receiver.endpoint)
        with running.http(traceparent=PARENT) as http:
            http.post(
                "/v1/chat/completions",
                json={
                    "model": MODEL,
                    "max_tokens": 4,
                    "messages": [{"role": "user", "content": PROMPT}],
                },
            ).raise_for_status()
        trace = PARENT.split("-")[1]
        names = {"POST /v1/chat/completions", "dialogue.plan", f"chat {MODEL}", "generate"}
        wait_until(lambda: names <= receiver.trace(trace).keys(), "the spans")
        spans = receiver.trace(trace)
        assert spans["POST /v1/chat/completions"].parent == PARENT.split("-")[2]
        assert spans["dialogue.plan"].service == "parley-dialogue"
        body = b"".join(receiver.raw)
    assert __version__.encode() in body
    assert b"secret wish" not in body


def test_a_collector_that_is_away_costs_a_bounded_memory_and_no_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = start("http://127.0.0.1:1/v1/traces")
    began = time.perf_counter()
    with within(Origin(traceparent=PARENT)):
        for _ in range(10_000):
            with tracing.span("dialogue.plan", "server"):
                pass
    # Nobody waited for a connection.
    assert time.perf_counter() - began < 10.0
    (processor,) = recorder._provider._active_span_processor._span_processors
    assert len(processor._batch_processor._queue) <= 4096  # type: ignore[attr-defined]


def test_without_the_exporter_traces_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'parley\[otel\]'"):
        start("http://127.0.0.1:4318/v1/traces")
    tracing.require_exporter(TelemetrySettings())


@pytest.mark.parametrize(
    "endpoint",
    ["collector:4318", "grpc://collector:4317", "http://me:hunter2@collector/v1", "http://", ""],
)
def test_an_endpoint_that_is_none_is_refused_and_not_quoted(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.trace_endpoint: give an http://") as refused:
        Settings.load({"telemetry": {"trace_endpoint": endpoint}})
    assert "hunter2" not in refused.value.message
