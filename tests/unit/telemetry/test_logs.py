"""Lines of log say whose they are, and nothing that mustn't be in them."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from replica_log import ReplicaLog

from serve_app.errors import StateUnavailable
from serve_app.operations.request_logs import read_line
from serve_app.telemetry.origin import Origin, within

ORIGIN = Origin(
    request="resp_1",
    http_request="1f0e",
    conversation="conv_1",
    tenant="acme",
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
IDS = {
    "request_id": "resp_1",
    "http_request_id": "1f0e",
    "conversation_id": "conv_1",
    "tenant": "acme",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "span_id": "00f067aa0ba902b7",
}
SECRETS = [
    "pk-0011aabb-ccddeeff00112233",
    "hunter2-of-redis",
    "grace.hopper@navy.example.org",
    "+49 30 901820-11",
    "4111 1111 1111 1111",
]
LINE = (
    "key pk-0011aabb-ccddeeff00112233 at redis://parley:hunter2-of-redis@redis:6379/0 for "
    "grace.hopper@navy.example.org, +49 30 901820-11, 4111 1111 1111 1111"
)
PROMPT = "My secret wish is to see whales."

serve = logging.getLogger("ray.serve")
own = logging.getLogger("serve_app.dialogue.manager")


@pytest.mark.parametrize("logger", [serve, own], ids=["Serve's logger", "Parley's logger"])
@pytest.mark.parametrize("form", ["json", "Serve's JSON", "text"])
def test_a_line_carries_the_ids_of_what_is_being_worked_for(
    replica_log: ReplicaLog, logger: logging.Logger, form: str
) -> None:
    replica_log.configure("JSON" if form == "Serve's JSON" else "TEXT")
    replica_log.use(log_format="json" if form == "json" else "text")
    with within(ORIGIN):
        logger.warning("It took %d s.", 3)
    logger.warning("Nobody's.")
    if form == "text":
        first, second = replica_log.text().splitlines()
        assert first.endswith(f"It took 3 s. [{' '.join(f'{k}={v}' for k, v in IDS.items())}]")
        assert second.endswith("Nobody's.")
        return
    first, second = replica_log.lines()
    assert {name: first.get(name) for name in IDS} == IDS
    assert first["message"] == "It took 3 s."
    assert IDS.keys().isdisjoint(second)


def test_parleys_json_says_where_and_when_in_the_keys_that_parley_ops_reads(
    replica_log: ReplicaLog,
) -> None:
    replica_log.configure()
    replica_log.use(log_format="json")
    with within(ORIGIN):
        own.error("Oh.")
    (line,) = replica_log.text().splitlines()
    read = read_line("pod-a", line)
    assert (read.deployment, read.level, read.message) == ("Ingress", "ERROR", "Oh.")
    assert read.time == json.loads(line)["asctime"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_and_personal_data_are_masked_wherever_they_stand(
    replica_log: ReplicaLog, form: str
) -> None:
    replica_log.configure()
    replica_log.use(log_format=form)
    serve.warning(LINE)
    serve.warning("asked: %s", LINE)
    own.warning(LINE, stack_info=True)
    print(LINE)  # noqa: T201 - as a library may
    try:
        raise StateUnavailable(LINE)
    except StateUnavailable:
        own.exception(LINE)
    text = replica_log.text()
    assert text.count("parley:") == 0
    assert text.count("@redis:6379/0") >= 6
    assert [secret for secret in SECRETS if secret in text] == []


def raise_through(error: Exception) -> None:
    try:
        raise error
    except Exception as inner:
        message = "no more"
        raise RuntimeError(message) from inner


@pytest.mark.parametrize(
    "error",
    [
        ValueError(PROMPT),
        KeyError(PROMPT),
        TypeError(PROMPT),
        RayTaskError("plan", f"remote traceback with {PROMPT}", ValueError(PROMPT)),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("form", ["json", "text", "Serve's JSON"])
def test_what_an_exception_may_quote_of_a_prompt_is_left_out_unless_asked_for(
    replica_log: ReplicaLog, error: Exception, form: str
) -> None:
    replica_log.configure("JSON" if form == "Serve's JSON" else "TEXT")

    def told(*, trace_text: bool) -> str:
        before = len(replica_log.text())
        replica_log.use(log_format="json" if form == "json" else "text", trace_text=trace_text)
        try:
            raise_through(error)
        except RuntimeError:
            own.exception("A response broke.")
        return replica_log.text()[before:]

    said = told(trace_text=False)
    assert PROMPT not in said
    # Where it was, and what was made of it, are there.
    assert "raise_through" in said
    assert type(error).__qualname__ in said
    assert "RuntimeError: no more" in said
    assert PROMPT in told(trace_text=True)


def test_an_error_that_nobody_awaited_is_one_record_and_quotes_nothing(
    replica_log: ReplicaLog,
) -> None:
    replica_log.configure()
    replica_log.use(log_format="json")
    try:
        raise ValueError(PROMPT)
    except ValueError as error:
        logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=error)
    (line,) = replica_log.lines()
    assert line["logger"] == "asyncio"
    assert "ValueError" in line["exc_text"]
    assert PROMPT not in json.dumps(line)


def test_serves_level_counts_for_parleys_own_loggers_too(replica_log: ReplicaLog) -> None:
    replica_log.configure(level="WARNING")
    replica_log.use()
    own.info("Unwanted.")
    own.warning("Wanted.")
    assert "Unwanted" not in replica_log.text()
    assert "Wanted" in replica_log.text()


def test_lines_keep_their_form_when_serve_sets_its_log_up_anew(replica_log: ReplicaLog) -> None:
    replica_log.configure()
    replica_log.use(log_format="json")
    replica_log.configure(level="INFO")
    with within(ORIGIN):
        serve.warning(LINE)
    (line,) = replica_log.lines()
    assert line["request_id"] == "resp_1"
    assert "grace.hopper" not in line["message"]


def test_a_warning_does_not_wait_for_a_thousand_lines_to_come_together(
    replica_log: ReplicaLog,
) -> None:
    replica_log.configure(buffer=1000)
    replica_log.use()
    own.warning("Now.")
    (file,) = replica_log.folder.glob("replica_*.log")
    assert "Now." in file.read_text(encoding="utf-8")


def test_a_line_of_a_megabyte_is_cut_in_its_middle(replica_log: ReplicaLog) -> None:
    replica_log.configure()
    replica_log.use(log_format="json")
    serve.warning("begin %s end", "x" * 1_000_000)
    (line,) = replica_log.lines()
    assert len(line["message"]) < 20_000
    assert line["message"].startswith("begin ")
    assert line["message"].endswith(" end")


def test_a_message_that_does_not_fit_its_arguments_breaks_nothing(
    replica_log: ReplicaLog, caplog: pytest.LogCaptureFixture
) -> None:
    replica_log.configure()
    replica_log.use(log_format="json")
    wrong: tuple[Any, ...] = (1, 2)
    serve.warning("Only %d.", *wrong)
    (line,) = replica_log.lines()
    assert line["message"] == "Only %d."
