from __future__ import annotations

import orjson
import pytest

from serve_app.api.body import parse_body
from serve_app.api.conversations import ConversationRequest, ItemsQuery
from serve_app.api.errors import as_parley_error, envelope, error_event, error_headers, failure
from serve_app.api.ids import (
    chat_completion_id,
    checked_conversation_id,
    completion_id,
    message_id,
)
from serve_app.api.items import new_items
from serve_app.api.reply import Usage
from serve_app.api.sse import HOLE, cut
from serve_app.api.tokenize import DetokenizeRequest, TokenizeRequest, detokenized, tokenized
from serve_app.errors import (
    ClientGone,
    CommitUnknown,
    DeadlineExceeded,
    GeneratorLost,
    InvalidRequest,
    Overloaded,
    ParleyError,
    Unauthorized,
    UnsupportedParameter,
)
from serve_app.messages.generation import Finished, FinishReason
from serve_app.messages.tokenization import Message
from serve_app.state.keyspace import new_conversation_id, new_response_id


def finished(reason: FinishReason, **fields: object) -> Finished:
    costs = {"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 3}
    times = {"queue_s": 0.0, "prefill_s": 0.0, "decode_s": 0.0}
    return Finished(stream=1, reason=reason, **{**costs, **times, **fields})  # type: ignore[arg-type]


def test_the_envelope_is_openais() -> None:
    error = UnsupportedParameter("'tools' is not supported.", param="tools")
    assert envelope(error) == {
        "error": {
            "message": "'tools' is not supported.",
            "type": "invalid_request_error",
            "param": "tools",
            "code": "unsupported_parameter",
        }
    }
    assert error_event(error) == b"data: " + orjson.dumps(envelope(error)) + b"\n\n"


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (2.1, "3")])
def test_retry_after_is_whole_seconds_and_never_too_soon(seconds: float, header: str) -> None:
    assert error_headers(Overloaded("Full.", retry_after=seconds)) == {"retry-after": header}


def test_clients_are_told_not_to_repeat_a_turn_that_may_be_stored() -> None:
    assert error_headers(CommitUnknown("Look first.")) == {"x-should-retry": "false"}


def test_only_what_applies_is_in_the_headers() -> None:
    assert error_headers(InvalidRequest("Wrong.")) == {}
    assert error_headers(Unauthorized("No key.")) == {"www-authenticate": "Bearer"}


def test_an_unexpected_exception_tells_nothing_about_itself() -> None:
    error = as_parley_error(RuntimeError("password=hunter2 at /secret/path"))
    assert (error.status, error.code) == (500, "internal_error")
    assert "hunter2" not in str(envelope(error))


def test_an_error_keeps_its_identity_also_inside_of_a_wrapper() -> None:
    original = Overloaded("Full.", code="queue_full", retry_after=2)
    assert as_parley_error(original) is original

    class Wrapped(Overloaded):
        def __init__(self, cause: ParleyError) -> None:
            Exception.__init__(self, cause)
            self.cause = cause

    assert as_parley_error(Wrapped(original)) is original


def test_a_finished_reply_is_no_failure() -> None:
    assert failure(finished(FinishReason.STOP)) is None
    assert failure(finished(FinishReason.LENGTH)) is None


def test_every_other_end_is_an_error_with_its_code() -> None:
    assert isinstance(failure(finished(FinishReason.DEADLINE)), DeadlineExceeded)
    assert isinstance(failure(finished(FinishReason.CANCELLED)), ClientGone)
    lost = failure(finished(FinishReason.ERROR, error_code="generator_lost", error_message="Gone."))
    assert isinstance(lost, GeneratorLost)
    assert lost.message == "Gone."
    other = failure(finished(FinishReason.ERROR, error_code="engine_error", error_message="Broke."))
    assert other is not None
    assert (other.status, other.code, other.message) == (500, "engine_error", "Broke.")
    silent = failure(finished(FinishReason.ERROR))
    assert silent is not None
    assert (silent.code, bool(silent.message)) == ("internal_error", True)


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (chat_completion_id, "chatcmpl-"),
        (completion_id, "cmpl-"),
        (new_response_id, "resp_"),
        (message_id, "msg_"),
    ],
)
def test_ids_say_what_they_are_and_never_repeat(make: object, prefix: str) -> None:
    assert callable(make)
    ids = {make() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(name.startswith(prefix) and len(name) >= len(prefix) + 24 for name in ids)


def test_every_new_conversation_id_passes_its_own_check() -> None:
    for _ in range(1000):
        name = new_conversation_id()
        assert checked_conversation_id(name) == name


def test_usage_counts_a_prompt_once_and_its_choices_together() -> None:
    choices = [
        finished(FinishReason.STOP, cached_tokens=4, completion_tokens=3),
        finished(FinishReason.STOP, cached_tokens=9, completion_tokens=5),
    ]
    assert Usage.of(choices) == Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=8)
    assert Usage.of(choices) + Usage(1, 1, 1) == Usage(11, 5, 9)


def test_a_template_with_another_number_of_holes_is_refused() -> None:
    assert cut({"a": HOLE}, holes=1) == [b'data: {"a":', b"}\n\n"]
    with pytest.raises(ValueError, match="2 holes in place of 1"):
        cut({"a": HOLE, "model": HOLE}, holes=1)


def test_the_items_query_reads_what_the_client_sends() -> None:
    assert ItemsQuery.parse([]) == ItemsQuery(limit=20, order="desc", after=None)
    query = ItemsQuery.parse([("limit", "100"), ("order", "asc"), ("after", "msg_1")])
    assert (query.limit, query.order, query.after) == (100, "asc", "msg_1")


@pytest.mark.parametrize(
    ("pairs", "param"),
    [
        ([("limit", "0")], "limit"),
        ([("limit", "101")], "limit"),
        ([("limit", "ten")], "limit"),
        ([("limit", "9" * 5000)], "limit"),
        ([("limit", "²")], "limit"),
        ([("order", "up")], "order"),
        ([("limit", "5"), ("limit", "6")], "limit"),
        ([("include[]", "x")], "include[]"),
    ],
)
def test_a_wrong_items_query_is_refused_by_name(pairs: list[tuple[str, str]], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        ItemsQuery.parse(pairs)
    assert refusal.value.param == param


def test_first_items_become_stored_items_with_new_ids() -> None:
    body = {"items": [{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]}
    request = parse_body(orjson.dumps(body), ConversationRequest, max_depth=32)
    first, second = new_items(request.to_messages(), created=7, response="resp_1")
    assert (first.role, first.content, second.role, second.content) == ("system", "a", "user", "b")
    assert first.id != second.id
    assert (first.created_at, first.response, first.status) == (7, "resp_1", "completed")


def test_a_conversation_takes_at_most_twenty_items() -> None:
    item = {"role": "user", "content": "x"}
    assert parse_body(b"{}", ConversationRequest, max_depth=32).items == []
    parse_body(orjson.dumps({"items": [item] * 20}), ConversationRequest, max_depth=32)
    with pytest.raises(InvalidRequest) as refusal:
        parse_body(orjson.dumps({"items": [item] * 21}), ConversationRequest, max_depth=32)
    assert refusal.value.param == "items"


@pytest.mark.parametrize(
    ("body", "source", "special", "generation"),
    [
        ({"text": "a"}, "a", True, True),
        ({"prompt": "a", "add_special_tokens": False}, "a", False, True),
        ({"text": ""}, "", True, True),
        ({"messages": [{"role": "user", "content": "a"}]}, (Message("user", "a"),), True, True),
        (
            {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False},
            (Message("user", "a"),),
            True,
            False,
        ),
    ],
)
def test_a_tokenize_request_says_what_to_encode(
    body: dict[str, object], source: object, special: object, generation: object
) -> None:
    request = parse_body(orjson.dumps(body), TokenizeRequest, max_depth=32)
    assert request.source == source
    assert request.with_special_tokens is special
    assert request.with_generation_prompt is generation


def test_tokens_come_out_as_from_vllm() -> None:
    assert tokenized((1, 2), context_length=9) == {"tokens": [1, 2], "count": 2, "max_model_len": 9}
    assert detokenized("a") == {"text": "a", "prompt": "a"}
    assert parse_body(b'{"tokens":[]}', DetokenizeRequest, max_depth=32).tokens == []
    with pytest.raises(InvalidRequest) as refusal:
        parse_body(b'{"tokens":[1,-1]}', DetokenizeRequest, max_depth=32)
    assert refusal.value.param == "tokens[1]"
