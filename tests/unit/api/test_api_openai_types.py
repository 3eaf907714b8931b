"""What the wire modules build is what the official client's own types demand, strictly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from openai.types import Completion, CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.conversations import (
    Conversation,
    ConversationDeletedResource,
    ConversationItemList,
    Message,
)
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from serve_app.api.body import parse_body
from serve_app.api.chat import chat_completion
from serve_app.api.chat_stream import ChatStreamEncoder
from serve_app.api.completion_stream import CompletionStreamEncoder
from serve_app.api.completions import completion_object
from serve_app.api.conversations import conversation_object, deleted_conversation, items_page
from serve_app.api.items import item_object
from serve_app.api.logprobs import LegacyLogprobs, chat_logprobs
from serve_app.api.models import model_list, model_object
from serve_app.api.reply import Extras, Reply, TokenLogprob, Usage
from serve_app.api.response_object import ResponseObject
from serve_app.api.response_stream import ResponseStreamEncoder, response_error_event
from serve_app.api.responses import ResponseRequest
from serve_app.errors import ContextLengthExceeded, GeneratorLost, Overloaded, ParleyError
from serve_app.messages.dialogue import Item
from serve_app.messages.generation import FinishReason
from serve_app.messages.tokenization import TokenizerInfo

USAGE = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=3)
EXTRAS = Extras(turns_left_out=2)
TEXTS = ["Hel", "lo", " 世界", ' "\\\n\x00\u2028', "🦊", "</script>"]
LOGPROBS = [
    TokenLogprob(
        "lo",
        b"lo",
        -0.25,
        (TokenLogprob("lo", b"lo", -0.25), TokenLogprob("\ufffd", b"\xe4", -2.0)),
    ),
    TokenLogprob("!", b"!", float("-inf")),
]


def strictly(model: Any, body: object) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(model)
    return adapter.validate_json(orjson.dumps(body), strict=True)


def parse_events(data: bytes) -> Iterator[dict[str, Any]]:
    assert data.endswith(b"\n\n")
    for event in data.removesuffix(b"\n\n").split(b"\n\n"):
        *rest, line = event.split(b"\n")
        body = orjson.loads(line.removeprefix(b"data: "))
        if rest:
            assert rest[-1] == b"event: " + body["type"].encode()
        if rest[:-1]:
            assert rest[:-1] == [b"id: %d" % body["sequence_number"]]
        yield body


def response_request(**fields: Any) -> ResponseRequest:
    body = orjson.dumps({"model": "m", "input": "hi", **fields})
    return parse_body(body, ResponseRequest, max_depth=32)


def response_object(**fields: Any) -> ResponseObject:
    made = ResponseObject.new(
        response_request(**fields), response="resp_1", item="msg_1", model="m", created=7
    )
    made.add(EXTRAS, fields.get("conversation"))
    return made


def test_a_chat_completion_is_one() -> None:
    replies = [Reply("Hello", FinishReason.STOP), Reply("Hi", FinishReason.LENGTH, LOGPROBS)]
    parsed = strictly(
        ChatCompletion,
        chat_completion(
            completion="chatcmpl-1",
            model="m",
            created=7,
            replies=replies,
            usage=USAGE,
            extras=EXTRAS,
            metadata={"k": "v"},
        ),
    )
    assert [choice.index for choice in parsed.choices] == [0, 1]
    assert [choice.message.content for choice in parsed.choices] == ["Hello", "Hi"]
    assert [choice.finish_reason for choice in parsed.choices] == ["stop", "length"]
    assert parsed.choices[0].logprobs is None
    first, second = parsed.choices[1].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("lo", [108, 111], -0.25)
    assert [top.bytes for top in first.top_logprobs] == [[108, 111], [0xE4]]
    assert second.logprob == -9999.0
    assert parsed.usage == CompletionUsage.model_validate(
        {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
    )
    assert parsed.metadata == {"k": "v"}
    assert parsed.parley == {"turns_left_out": 2}


def test_a_completion_is_one() -> None:
    replies = [Reply("Hello", FinishReason.STOP), Reply("lo!", FinishReason.LENGTH, LOGPROBS)]
    parsed = strictly(
        Completion,
        completion_object(
            completion="cmpl-1", model="m", created=7, replies=replies, usage=USAGE, extras=EXTRAS
        ),
    )
    assert [choice.text for choice in parsed.choices] == ["Hello", "lo!"]
    logprobs = parsed.choices[1].logprobs
    assert logprobs.tokens == ["lo", "!"]
    assert logprobs.token_logprobs == [-0.25, -9999.0]
    assert logprobs.text_offset == [0, 2]
    assert logprobs.top_logprobs[0] == {"lo": -0.25, "\ufffd": -2.0}
    assert parsed.usage.prompt_tokens_details.cached_tokens == 4


def test_of_tokens_that_read_the_same_the_likeliest_is_told() -> None:
    same = tuple(TokenLogprob("\ufffd", bytes([value]), -float(value)) for value in (1, 2, 3))
    (top,) = LegacyLogprobs().encode([TokenLogprob("x", b"x", 0.0, same)])["top_logprobs"]
    assert top == {"\ufffd": -1.0}


@pytest.mark.parametrize("include_usage", [True, False])
def test_chat_chunks_are_what_plain_encoding_gives(include_usage: bool) -> None:
    encoder = ChatStreamEncoder(
        completion="chatcmpl-1", model="org/m", created=7, choice=1, include_usage=include_usage
    )

    def plain(
        delta: dict[str, Any], logprobs: Any = None, reason: str | None = None, **more: Any
    ) -> bytes:
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 7,
            "model": "org/m",
            "choices": [
                {"index": 1, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            ],
        }
        if include_usage:
            body["usage"] = None
        body.update(more)
        strictly(ChatCompletionChunk, body)
        return b"data: " + orjson.dumps(body) + b"\n\n"

    first = {"role": "assistant", "content": ""}
    assert encoder.start() == plain(first)
    assert encoder.start(EXTRAS) == plain(first, parley={"turns_left_out": 2})
    for text in TEXTS:
        assert encoder.delta(text) == plain({"content": text})
        assert encoder.delta(text, LOGPROBS) == plain({"content": text}, chat_logprobs(LOGPROBS))
    assert encoder.finish(FinishReason.LENGTH) == plain({}, reason="length")


def test_the_usage_chunk_has_no_choices() -> None:
    encoder = ChatStreamEncoder(completion="c", model="m", created=7, include_usage=True)
    (body,) = parse_events(encoder.usage(USAGE))
    chunk = strictly(ChatCompletionChunk, body)
    assert chunk.choices == []
    assert chunk.usage.total_tokens == 13


@pytest.mark.parametrize("include_usage", [True, False])
def test_completion_chunks_are_what_plain_encoding_gives(include_usage: bool) -> None:
    encoder = CompletionStreamEncoder(
        completion="cmpl-1", model="m", created=7, choice=2, include_usage=include_usage
    )

    def plain(text: str, logprobs: Any = None, reason: str | None = None) -> bytes:
        body = {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 7,
            "model": "m",
            "choices": [{"index": 2, "text": text, "logprobs": logprobs, "finish_reason": reason}],
        }
        if include_usage:
            body["usage"] = None
        return b"data: " + orjson.dumps(body) + b"\n\n"

    legacy = LegacyLogprobs()
    for text in TEXTS:
        assert encoder.delta(text) == plain(text)
        assert encoder.delta(text, LOGPROBS) == plain(text, legacy.encode(LOGPROBS))
    (last,) = parse_events(encoder.finish(FinishReason.STOP))
    assert strictly(Completion, last).choices[0].finish_reason == "stop"
    (usage,) = parse_events(encoder.usage(USAGE))
    assert strictly(Completion, usage).usage.completion_tokens == 3


def test_a_response_is_one_in_every_state() -> None:
    response = response_object(
        instructions="Be brief.",
        conversation="conv_1",
        temperature=0.5,
        metadata={"k": "v"},
        user="u",
    )
    started = strictly(Response, response.in_progress())
    assert (started.status, started.output, started.usage) == ("in_progress", [], None)
    assert (started.instructions, started.temperature, started.top_p) == ("Be brief.", 0.5, 1.0)
    assert started.conversation.id == "conv_1"
    assert started.parley == {"turns_left_out": 2}

    done = strictly(
        Response,
        response.finished(Reply("Hello", FinishReason.STOP, LOGPROBS), USAGE, completed_at=9),
    )
    assert (done.status, done.output_text, done.completed_at) == ("completed", "Hello", 9)
    assert done.output[0].content[0].logprobs[0].top_logprobs[1].bytes == [0xE4]
    assert done.usage.input_tokens_details.cached_tokens == 4
    assert done.usage.total_tokens == 13

    cut = strictly(
        Response, response.finished(Reply("Hel", FinishReason.LENGTH), USAGE, completed_at=9)
    )
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (cut.output[0].status, cut.completed_at) == ("incomplete", None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GeneratorLost("Gone."), "server_error"),
        (Overloaded("Full."), "rate_limit_exceeded"),
        (ContextLengthExceeded("Long.", param="input"), "invalid_prompt"),
        (ParleyError("Oops."), "server_error"),
    ],
)
def test_a_failed_response_says_why_in_openais_codes_and_ours(
    error: ParleyError, code: str
) -> None:
    failed = strictly(Response, response_object().failed(error, "Hel"))
    assert (failed.status, failed.error.code, failed.error.type) == ("failed", code, error.code)
    assert (failed.error.message, failed.error.param) == (error.message, error.param)
    assert failed.output_text == "Hel"
    assert response_object().failed(error)["output"] == []


@pytest.mark.parametrize(
    ("reason", "last"),
    [(FinishReason.STOP, "response.completed"), (FinishReason.LENGTH, "response.incomplete")],
)
def test_response_events_are_openais_and_number_from_zero(reason: FinishReason, last: str) -> None:
    encoder = ResponseStreamEncoder(response_object())
    sent = encoder.start()
    sent += [encoder.delta(text) for text in TEXTS]
    sent.append(encoder.delta("lo", LOGPROBS))
    sent += encoder.finish(reason, USAGE, completed_at=9)
    events = [body for data in sent for body in parse_events(data)]
    assert len(events) == len(sent)
    for event in events:
        strictly(ResponseStreamEvent, event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas = ["response.output_text.delta"] * (len(TEXTS) + 1)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        last,
    ]
    text = "".join([*TEXTS, "lo"])
    assert "".join(event["delta"] for event in events[4:-4]) == text
    done, part, item, response = events[-4:]
    assert done["text"] == part["part"]["text"] == text
    assert len(done["logprobs"]) == len(LOGPROBS)
    assert item["item"] == response["response"]["output"][0]
    assert item["item"]["content"] == [part["part"]]


def test_a_response_delta_is_what_plain_encoding_gives() -> None:
    encoder = ResponseStreamEncoder(response_object())
    for number, text in enumerate(TEXTS):
        body = {
            "type": "response.output_text.delta",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "delta": text,
            "logprobs": [],
            "sequence_number": number,
        }
        head = b"id: %d\nevent: response.output_text.delta\ndata: " % number
        assert encoder.delta(text) == head + orjson.dumps(body) + b"\n\n"


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("end", ["completed", "incomplete", "failed", "cancelled", "never began"])
def test_what_is_stored_is_enough_to_make_every_event_again(end: str, *, background: bool) -> None:
    written = response_object(background=background)
    encoder = ResponseStreamEncoder(written)
    sent = encoder.queued() if background else []
    if end != "never began":
        sent += encoder.start()
        sent += [encoder.delta(text) for text in TEXTS]
        sent.append(encoder.delta("lo", LOGPROBS))
    match end:
        case "completed":
            final = encoder.finished(FinishReason.STOP, USAGE, completed_at=9)
        case "incomplete":
            final = encoder.finished(FinishReason.LENGTH, USAGE, completed_at=9)
        case "cancelled":
            final = encoder.cancelled()
        case _:
            final = encoder.failed(GeneratorLost("Gone."))
    sent += encoder.end(final)
    stored = {
        "response": final,
        "item": "msg_1",
        "began": encoder.began,
        "cuts": encoder.cuts,
    }
    again = ResponseStreamEncoder.replay(orjson.loads(orjson.dumps(stored)))
    assert again == sent
    for data in again:
        for event in parse_events(data):
            strictly(ResponseStreamEvent, event)


def test_a_failing_stream_ends_with_what_it_had_said() -> None:
    encoder = ResponseStreamEncoder(response_object())
    encoder.start()
    encoder.delta("Hel")
    (body,) = parse_events(encoder.fail(GeneratorLost("Gone.")))
    event = strictly(ResponseStreamEvent, body)
    assert (event.type, event.sequence_number) == ("response.failed", 5)
    assert event.response.output_text == "Hel"


def test_an_error_outside_of_a_response_has_its_own_event() -> None:
    (body,) = parse_events(response_error_event(Overloaded("Full."), 0))
    event = strictly(ResponseStreamEvent, body)
    assert (event.type, event.code, event.message) == ("error", "overloaded", "Full.")


def test_a_conversation_and_its_end_are_openais() -> None:
    shown = conversation_object("conv_1", created=7, metadata={"k": "v"})
    parsed = strictly(Conversation, shown)
    assert (parsed.id, parsed.created_at, parsed.metadata) == ("conv_1", 7, {"k": "v"})
    assert strictly(ConversationDeletedResource, deleted_conversation("conv_1")).deleted is True


@pytest.mark.parametrize(
    ("role", "kind"),
    [("user", "input_text"), ("system", "input_text"), ("assistant", "output_text")],
)
def test_an_item_is_openais(role: str, kind: str) -> None:
    parsed = strictly(Message, item_object(Item("msg_1", role, "text", status="incomplete")))
    assert (parsed.id, parsed.role, parsed.status) == ("msg_1", role, "incomplete")
    assert [(part.type, part.text) for part in parsed.content] == [(kind, "text")]


def test_a_page_of_items_names_its_ends() -> None:
    items = tuple(Item(f"msg_{number}", "user", "x") for number in range(3))
    parsed = strictly(ConversationItemList, items_page(items, has_more=True))
    assert (parsed.first_id, parsed.last_id, parsed.has_more) == ("msg_0", "msg_2", True)
    empty = strictly(ConversationItemList, items_page((), has_more=False))
    assert (empty.data, empty.first_id, empty.last_id) == ([], "", "")


def test_a_model_is_openais() -> None:
    info = TokenizerInfo("m", 49152, 8192, (2,), 7)
    parsed = strictly(Model, model_object(info))
    assert (parsed.id, parsed.created, parsed.owned_by) == ("m", 7, "parley")
    assert parsed.parley == {"context_length": 8192}

    class Models(BaseModel):
        object: str
        data: list[Model]

    assert [model.id for model in strictly(Models, model_list([info, info])).data] == ["m", "m"]


@pytest.mark.parametrize(
    "reason", [FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ERROR]
)
def test_an_error_has_no_finish_reason(reason: FinishReason) -> None:
    chat = ChatStreamEncoder(completion="c", model="m", created=7, include_usage=False)
    completion = CompletionStreamEncoder(completion="c", model="m", created=7, include_usage=False)
    for finish in (chat.finish, completion.finish):
        with pytest.raises(ValueError, match="not a reply"):
            finish(reason)
