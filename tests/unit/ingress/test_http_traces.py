"""A request's spans, over all deployments; what is not in them; and what tracing costs when it is off."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import opentelemetry.semconv._incubating.attributes.gen_ai_attributes as conventions
import pytest
from ingress_harness import MODEL, Service, service, settings_with, simulated, wait_until
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from recorded_spans import Spans, recorded_spans

from serve_app.telemetry import tracing
from serve_app.telemetry.origin import Origin, within

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PROMPT = "My secret wish is to see whales."
CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 12,
    "temperature": 0.5,
}
TREE = {
    "POST /v1/chat/completions": None,
    "dialogue.plan": "POST /v1/chat/completions",
    "tokenizer.encode_chat": "dialogue.plan",
    f"chat {MODEL}": "POST /v1/chat/completions",
    "generate": f"chat {MODEL}",
    "queue": "generate",
    "prefill": "generate",
    "decode": "generate",
}


@pytest.fixture(scope="module")
def running(bundled_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(
        bundled_tokenizer,
        tmp_path_factory.mktemp("home"),
        settings=settings_with(responses={"store": False}),
        backends=[simulated(step_s=0.001)],
    ) as made:
        yield made


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recorded_spans() as spans:
        yield spans


def ask(
    running: Service, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str
) -> Any:
    with running.http(**headers) as http:
        return http.post(path, json=body)


def ended(spans: Spans, *names: str) -> None:
    """Wait until spans of these names have ended."""
    wait_until(lambda: all(spans.named(name) for name in names), f"the end of {names}")


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
def test_each_hop_of_a_chat_has_its_span_below_the_one_that_called(
    running: Service, spans: Spans, *, stream: bool
) -> None:
    assert ask(running, CHAT | {"stream": stream}).status_code == 200
    ended(spans, *TREE)
    assert spans.tree() == TREE
    assert len({one.context.trace_id for one in spans.all() if one.context}) == 1


def test_queue_prefill_and_decode_are_the_parts_of_a_stream(running: Service, spans: Spans) -> None:
    ask(running, CHAT)
    ended(spans, "generate")
    whole = spans.one("generate")
    parts = [spans.one(name) for name in ("queue", "prefill", "decode")]
    edges = [(one.start_time or 0, one.end_time or 0) for one in parts]
    assert edges[0][0] == whole.start_time
    assert all(before[1] == behind[0] for before, behind in pairwise(edges))
    assert edges[2][1] <= (whole.end_time or 0)
    # Eleven steps of a millisecond at least.
    assert edges[2][1] - edges[2][0] >= 11_000_000


def test_inference_is_told_by_the_genai_conventions(running: Service, spans: Spans) -> None:
    answer = ask(running, CHAT | {"top_p": 0.9, "n": 2, "seed": 7}).json()
    ended(spans, f"chat {MODEL}")
    span = spans.one(f"chat {MODEL}")
    told = attributes(span)
    usage = answer["usage"]
    assert told.pop("gen_ai.response.time_to_first_chunk") > 0
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "parley",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": answer["id"],
        "gen_ai.output.type": "text",
        "gen_ai.request.stream": False,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "parley.tenant": "default",
    }
    known = {value for value in vars(conventions).values() if isinstance(value, str)}
    assert {name for name in told if name.startswith("gen_ai.")} <= known


def test_completions_and_responses_are_traced_too(running: Service, spans: Spans) -> None:
    ask(running, {"model": MODEL, "prompt": [PROMPT, "Hi"], "max_tokens": 3}, "/v1/completions")
    ended(spans, f"text_completion {MODEL}")
    told = attributes(spans.one(f"text_completion {MODEL}"))
    assert told["gen_ai.usage.output_tokens"] == 6
    assert len(spans.named("tokenizer.encode")) == 2
    ask(running, {"model": MODEL, "input": PROMPT, "max_output_tokens": 3}, "/v1/responses")
    ended(spans, f"chat {MODEL}", "POST /v1/responses")
    assert spans.tree()[f"chat {MODEL}"] == "POST /v1/responses"
    told = attributes(spans.one(f"chat {MODEL}"))
    assert told["gen_ai.response.id"].startswith("resp_")
    assert told["gen_ai.usage.output_tokens"] == 3


def test_a_callers_trace_is_continued(running: Service, spans: Spans) -> None:
    ask(running, CHAT, traceparent=f"00-{TRACE}-{CALLER}-01", tracestate="a=b")
    ended(spans, *TREE)
    assert {one.context.trace_id for one in spans.all() if one.context} == {int(TRACE, 16)}
    root = spans.one("POST /v1/chat/completions")
    assert root.parent is not None
    assert root.parent.span_id == int(CALLER, 16)


@pytest.mark.parametrize(
    "header",
    ["nonsense", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01", "x" * 4000],
    ids=lambda header: header[:16],
)
def test_a_bad_traceparent_is_ignored(running: Service, spans: Spans, header: str) -> None:
    assert ask(running, CHAT, traceparent=header).status_code == 200
    ended(spans, *TREE)
    assert spans.one("POST /v1/chat/completions").parent is None


def test_two_traceparents_are_none(running: Service, spans: Spans) -> None:
    header = f"00-{TRACE}-{CALLER}-01"
    with running.http() as http:
        http.post(
            "/v1/chat/completions",
            json=CHAT,
            headers=[("traceparent", header), ("traceparent", header)],
        )
    ended(spans, *TREE)
    assert spans.one("POST /v1/chat/completions").parent is None


def test_the_edges_own_header_is_nobody_elses(running: Service, spans: Spans) -> None:
    ask(running, CHAT, **{"parley-traceparent": f"00-{TRACE}-{CALLER}-01"})
    ended(spans, *TREE)
    assert spans.one("POST /v1/chat/completions").parent is None


def test_a_caller_who_samples_nothing_is_not_traced(running: Service, spans: Spans) -> None:
    ask(running, CHAT, traceparent=f"00-{TRACE}-{CALLER}-00")
    running.wait_until_idle()
    assert spans.all() == []


def test_the_ratio_says_how_many_requests_are_traced(running: Service) -> None:
    with recorded_spans(ratio=0.0) as spans:
        ask(running, CHAT)
        running.wait_until_idle()
        assert spans.all() == []
        # One that comes with a trace of its own goes by its own flag.
        ask(running, CHAT, traceparent=f"00-{TRACE}-{CALLER}-01")
        ended(spans, *TREE)


def test_probes_and_scrapes_are_not_traced(running: Service, spans: Spans) -> None:
    with running.http() as http:
        for path in ("/health", "/ready", "/metrics"):
            http.get(path)
        http.get("/v1/models")
    ended(spans, "GET /v1/models")
    assert [one.name for one in spans.all()] == ["GET /v1/models"]


def everything(spans: Spans) -> str:
    return "".join(one.to_json() for one in spans.all())


@pytest.mark.parametrize("stream", [False, True])
def test_no_word_of_prompt_or_reply_is_in_a_span(
    running: Service, spans: Spans, *, stream: bool
) -> None:
    body = CHAT | {"stop": ["My stop string"], "stream": stream}
    answer = ask(running, body)
    ended(spans, *TREE)
    said = everything(spans)
    assert "secret wish" not in said
    assert "My stop" not in said
    if not stream:
        reply = answer.json()["choices"][0]["message"]["content"]
        assert reply
        assert json.dumps(reply)[1:-1] not in said


def test_no_path_is_in_a_span(running: Service, spans: Spans) -> None:
    with running.http() as http:
        http.get("/v1/profiles/ada.lovelace")
    ended(spans, "GET /v1/profiles/{user}")
    assert "lovelace" not in everything(spans)


def test_prompt_and_reply_are_in_the_span_where_they_are_asked_for(running: Service) -> None:
    with recorded_spans(takes_text=True) as spans:
        answer = ask(running, CHAT | {"stop": ["My stop string"]}).json()
        ended(spans, f"chat {MODEL}")
        told = attributes(spans.one(f"chat {MODEL}"))
    assert json.loads(told["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": PROMPT}]}
    ]
    (said,) = json.loads(told["gen_ai.output.messages"])
    assert said["parts"][0]["content"] == answer["choices"][0]["message"]["content"]
    assert said["finish_reason"] == "length"
    assert told["gen_ai.request.stop_sequences"] == ("My stop string",)


def test_a_refusal_is_told_by_its_code_alone(running: Service, spans: Spans) -> None:
    running.dialogue.before_plan = _fail
    try:
        assert ask(running, CHAT).status_code == 500
    finally:
        del running.dialogue.before_plan
    ended(spans, "POST /v1/chat/completions")
    span = spans.one("POST /v1/chat/completions")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "internal_error"
    assert "secret wish" not in everything(spans)


def _fail() -> None:
    raise ValueError(PROMPT)


def test_a_clients_mistake_is_no_failure_of_the_service(running: Service, spans: Spans) -> None:
    assert ask(running, CHAT | {"temperature": 9}).status_code == 400
    ended(spans, "POST /v1/chat/completions")
    span = spans.one("POST /v1/chat/completions")
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["http.response.status_code"] == 400


def test_a_client_that_leaves_ends_every_span(running: Service, spans: Spans) -> None:
    with (
        running.http() as http,
        http.stream(
            "POST", "/v1/chat/completions", json=CHAT | {"stream": True, "max_tokens": 400}
        ) as answer,
    ):
        next(answer.iter_lines())
    ended(spans, *TREE)
    assert attributes(spans.one(f"chat {MODEL}"))["error.type"] == "cancelled"
    assert attributes(spans.one("generate"))["parley.finish_reason"] == "cancelled"
    running.wait_until_idle()


class Kept(logging.Handler):
    """What is logged, with whose it is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Origin | None]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((record.name, tracing.current()))


def test_every_deployments_lines_know_whose_they_are(running: Service) -> None:
    kept = Kept()
    loggers = [logging.getLogger(name) for name in ("ray.serve", "serve_app")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.addHandler(kept)
        one.setLevel(logging.DEBUG)
    try:
        answer = ask(running, CHAT, traceparent=f"00-{TRACE}-{CALLER}-01").json()
        wait_until(lambda: len({name for name, _ in kept.seen}) >= 4, "a line of each deployment")
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.removeHandler(kept)
            one.setLevel(level)
    names = {name for name, _ in kept.seen}
    assert names == {
        "ray.serve",
        "serve_app.dialogue.manager",
        "serve_app.tokenization.deployment",
        "serve_app.generation.stream_spans",
    }
    for _, origin in kept.seen:
        assert origin is not None
        assert (origin.request, origin.tenant) == (answer["id"], "default")
        # Nothing is traced here; the client's own trace is in the lines all the same.
        assert origin.traceparent == f"00-{TRACE}-{CALLER}-01"


def test_off_a_span_costs_next_to_nothing() -> None:
    assert not tracing.tracing()
    calls = 20_000
    with within(Origin(request="resp_1", traceparent=f"00-{TRACE}-{CALLER}-01")):
        began = time.process_time()
        for _ in range(calls):
            with tracing.span("dialogue.plan", "server") as span:
                assert not span.recording
        each = (time.process_time() - began) / calls
    # A request makes about ten; a microsecond each is a thousandth of what its first step takes.
    assert each < 20e-6


def loaded(code: str) -> set[str]:
    """Return the modules that are there once some code has run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(done.stdout.split())


def test_off_nothing_of_opentelemetry_is_loaded_for_spans() -> None:
    code = (
        "from serve_app.settings import TelemetrySettings\n"
        "from serve_app.telemetry import logs, metrics, tracing\n"
        "{importing}\n"
        "off = TelemetrySettings()\n"
        "tracing.start(off, deployment='Ingress', replica='r')\n"
        "logs.use(off, deployment='Ingress', replica='r')\n"
        "with tracing.root('GET'), tracing.span('dialogue.plan', 'server'): pass\n"
    )
    modules = loaded(code.format(importing=""))
    assert "serve_app.telemetry.tracing" in modules
    assert not any(name.partition(".")[0] == "opentelemetry" for name in modules)
    # Ray itself loads the SDK. Of Parley, the one module that may use it is not even there.
    modules = loaded(code.format(importing="import serve_app.app"))
    assert "serve_app.ingress.deployment" in modules
    assert "serve_app.telemetry.otel" not in modules
    assert not any(name.startswith("opentelemetry.exporter.otlp") for name in modules)
