from __future__ import annotations

import pytest
from sse_server import event, usage, word

from load.dialects import ChatStream, ReplyStream, ResponseStream
from load.measurements import TokenCounts
from load.workload import Workload
from serve_app.api.chat import ChatCompletionRequest
from serve_app.api.responses import ResponseRequest

CHAT = word("Good ") + word("day") + usage(12, 8, 2) + b"data: [DONE]\n\n"
DELTA = "response.output_text.delta"
COUNTS = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 2,
}
RESPONSE = (
    event({"type": "response.created", "response": {}})
    + event({"type": DELTA, "delta": "Good "})
    + event({"type": DELTA, "delta": "day"})
    + event({"type": "response.completed", "response": {"usage": COUNTS}})
)


def fed(stream: ReplyStream, body: bytes, size: int) -> ReplyStream:
    for start in range(0, len(body), size):
        stream.feed(body[start : start + size])
    return stream


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(("kind", "body"), [(ChatStream, CHAT), (ResponseStream, RESPONSE)])
def test_a_reply_is_read_wherever_it_is_cut(
    kind: type[ReplyStream], body: bytes, line_end: bytes, size: int
) -> None:
    stream = fed(kind(), body.replace(b"\n", line_end), size)
    assert stream.text == "Good day"
    assert stream.complete
    assert stream.reply.error is None
    assert stream.reply.arrivals == 2
    assert len(stream.reply.gaps) == 1
    assert stream.reply.tokens == TokenCounts(prompt=12, cached=8, completion=2)


def test_a_role_and_a_comment_are_no_text() -> None:
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    stream = fed(ChatStream(), b": ping\n\n" + role, 1000)
    assert stream.reply.arrivals == 0
    assert stream.reply.first_at is None
    assert stream.reply.error is None


@pytest.mark.parametrize(
    ("stream", "body", "kind"),
    [
        (ChatStream(), {"error": {"code": "generator_lost", "type": "x"}}, "generator_lost"),
        (ChatStream(), {"error": {"type": "server_error"}}, "server_error"),
        (ChatStream(), {"error": "no"}, "error event"),
        (ResponseStream(), {"type": "error", "code": "overloaded"}, "overloaded"),
        (
            ResponseStream(),
            {"type": "response.failed", "response": {"error": {"code": "generator_lost"}}},
            "generator_lost",
        ),
    ],
)
def test_an_error_event_fails_the_reply(
    stream: ReplyStream, body: dict[str, object], kind: str
) -> None:
    fed(stream, event(body), 1000)
    assert stream.reply.error == kind


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}", b'{"choices": [{}]}', b'{"choices": 3}'])
def test_an_event_that_makes_no_sense_fails_the_reply(data: bytes) -> None:
    stream = fed(ChatStream(), b"data: " + data + b"\n\n", 1000)
    assert stream.reply.error == "malformed event"


@pytest.mark.parametrize("ignore_eos", [True, False])
@pytest.mark.parametrize(
    ("kind", "request_type"),
    [(ChatStream, ChatCompletionRequest), (ResponseStream, ResponseRequest)],
)
def test_parley_takes_the_question_as_it_is_meant(
    kind: type[ReplyStream], request_type: type, ignore_eos: bool
) -> None:
    workload = Workload(output_tokens=7, ignore_eos=ignore_eos)
    conversation = workload.conversation(0)
    body = kind.body("some-model", conversation.ask(), workload)
    assert ("ignore_eos" in body) == ignore_eos
    request = request_type.model_validate(body)
    assert request.stream
    assert request.token_limit == 7
    assert request.ignore_eos == ignore_eos
    assert request.to_messages() == tuple(conversation.messages)
