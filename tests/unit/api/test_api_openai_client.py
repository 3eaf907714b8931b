"""The official client against an application that does nothing but parse and encode."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx2
import openai
import orjson
import pytest

from serve_app.api import ids
from serve_app.api.body import parse_body
from serve_app.api.chat import ChatCompletionRequest, chat_completion
from serve_app.api.chat_stream import ChatStreamEncoder
from serve_app.api.completion_stream import CompletionStreamEncoder
from serve_app.api.completions import CompletionRequest, completion_object
from serve_app.api.conversations import (
    ConversationRequest,
    ItemsQuery,
    conversation_object,
    deleted_conversation,
    items_page,
)
from serve_app.api.errors import envelope, error_event, error_headers
from serve_app.api.items import new_items
from serve_app.api.models import model_list
from serve_app.api.reply import Extras, Reply, TokenLogprob, Usage
from serve_app.api.response_object import ResponseObject
from serve_app.api.response_stream import ResponseStreamEncoder
from serve_app.api.responses import ResponseRequest
from serve_app.api.sse import DONE, HEADERS
from serve_app.errors import GeneratorLost, Overloaded, ParleyError
from serve_app.messages.dialogue import Item
from serve_app.messages.generation import FinishReason
from serve_app.messages.tokenization import TokenizerInfo
from serve_app.state.keyspace import new_response_id

PIECES = ["Hel", "lo", ", 世", "界 🦊", "\n\ndata: [DONE]\n\n", '"quoted"']
TEXT = "".join(PIECES)
USAGE = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=len(PIECES))
EXTRAS = Extras(turns_left_out=1)
LOST = GeneratorLost("The generator was lost. Send the request again.")

Answer = tuple[dict[str, Any] | Iterator[bytes], dict[str, str]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Application:
    """An ASGI application whose model always says the same; it fails when told `user="fail"`."""

    def __init__(self) -> None:
        self.items: tuple[Item, ...] = ()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message.get("body", b""), message.get("more_body", False)
        try:
            body, headers = self.answer(scope["method"], scope["path"], scope["query_string"], data)
            status = 200
        except ParleyError as error:
            body, headers, status = envelope(error), error_headers(error), error.status
        if isinstance(body, dict):
            chunks = iter([orjson.dumps(body)])
            headers = {"content-type": "application/json", **headers}
        else:
            chunks, headers = body, HEADERS
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def answer(self, method: str, path: str, query: bytes, data: bytes) -> Answer:
        match method, path.split("/")[2:]:
            case "POST", ["chat", "completions"]:
                return self.chat(parse_body(data, ChatCompletionRequest, max_depth=32)), {}
            case "POST", ["completions"]:
                return self.complete(parse_body(data, CompletionRequest, max_depth=32)), {}
            case "POST", ["responses"]:
                return self.respond(parse_body(data, ResponseRequest, max_depth=32)), {}
            case "POST", ["conversations"]:
                request = parse_body(data, ConversationRequest, max_depth=32)
                self.items = new_items(request.to_messages(), created=7)
                return conversation_object("conv_1", created=7, metadata=request.metadata), {}
            case "GET", ["conversations", _, "items"]:
                pairs = httpx2.QueryParams(query.decode()).multi_items()
                return self.page(ItemsQuery.parse(pairs)), {}
            case "DELETE", ["conversations", name]:
                return deleted_conversation(name), {}
            case "GET", ["models"]:
                return model_list([TokenizerInfo("m", 9, 9, (2,), 7)]), {}
        raise AssertionError(path)

    def page(self, query: ItemsQuery) -> dict[str, Any]:
        items = self.items if query.order == "asc" else self.items[::-1]
        ids = [item.id for item in items]
        start = 0 if query.after is None else ids.index(query.after) + 1
        end = start + query.limit
        return items_page(items[start:end], has_more=end < len(items))

    def chat(self, request: ChatCompletionRequest) -> dict[str, Any] | Iterator[bytes]:
        name = ids.chat_completion_id()
        if not request.stream:
            if request.user == "fail":
                raise Overloaded("Everything is busy. Try again in 3 seconds.", retry_after=3)
            replies = [Reply(TEXT, FinishReason.STOP)] * request.n
            return chat_completion(
                completion=name, model="m", created=7, replies=replies, usage=USAGE, extras=EXTRAS
            )
        return self.chat_stream(request, name)

    def chat_stream(self, request: ChatCompletionRequest, name: str) -> Iterator[bytes]:
        encoders = [
            ChatStreamEncoder(
                completion=name, model="m", created=7, choice=i, include_usage=request.include_usage
            )
            for i in range(request.n)
        ]
        for encoder in encoders:
            yield encoder.start(EXTRAS)
        for piece in PIECES:
            for encoder in encoders:
                yield encoder.delta(piece, self.logprobs(piece) if request.logprobs else None)
        if request.user == "fail":
            yield error_event(LOST)
            return
        for encoder in encoders:
            cut = request.token_limit == len(PIECES)
            yield encoder.finish(FinishReason.LENGTH if cut else FinishReason.STOP)
        if request.include_usage:
            yield encoders[0].usage(USAGE)
        yield DONE

    def complete(self, request: CompletionRequest) -> dict[str, Any] | Iterator[bytes]:
        name = ids.completion_id()
        if not request.stream:
            reply = Reply(TEXT, FinishReason.STOP, [*self.logprobs("a"), *self.logprobs("b")])
            return completion_object(
                completion=name, model="m", created=7, replies=[reply], usage=USAGE, extras=EXTRAS
            )
        encoder = CompletionStreamEncoder(
            completion=name, model="m", created=7, include_usage=request.include_usage
        )
        deltas = [encoder.delta(piece, self.logprobs(piece)) for piece in PIECES]
        return iter([*deltas, encoder.finish(FinishReason.STOP), encoder.usage(USAGE), DONE])

    def respond(self, request: ResponseRequest) -> dict[str, Any] | Iterator[bytes]:
        response = ResponseObject.new(
            request, response=new_response_id(), item=ids.message_id(), model="m", created=7
        )
        response.add(EXTRAS, None)
        if not request.stream:
            return response.finished(Reply(TEXT, FinishReason.STOP), USAGE, completed_at=9)
        encoder = ResponseStreamEncoder(response)
        events = encoder.start() + [encoder.delta(piece) for piece in PIECES]
        if request.user == "fail":
            return iter([*events, encoder.fail(LOST)])
        return iter([*events, *encoder.finish(FinishReason.STOP, USAGE, completed_at=9)])

    @staticmethod
    def logprobs(piece: str) -> list[TokenLogprob]:
        return [TokenLogprob(piece, piece.encode(), -0.5)]


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(Application())  # type: ignore[arg-type]
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(
            api_key="none",
            base_url="http://parley/v1",
            http_client=http,
            max_retries=0,
            _strict_response_validation=True,
        ) as client,
    ):
        yield client


HI: Any = [{"role": "user", "content": "hi"}]


async def test_a_chat_completion(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(model="m", messages=HI, n=2)
    assert [choice.message.content for choice in completion.choices] == [TEXT, TEXT]
    assert completion.usage is not None
    assert completion.usage.total_tokens == 10 + len(PIECES)
    assert completion.model_extra == {"parley": {"turns_left_out": 1}}


async def test_a_reply_can_be_sent_back_as_the_client_holds_it(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(model="m", messages=HI)
    message = completion.choices[0].message
    for form in (message, message.model_dump(), message.to_dict()):
        again = await client.chat.completions.create(model="m", messages=[*HI, form, *HI])
        assert again.choices[0].message.content == TEXT
    response = await client.responses.create(model="m", input="hi")
    output: Any = response.output
    again_response = await client.responses.create(model="m", input=[*HI, *output, *HI])
    assert again_response.output_text == TEXT


async def test_a_chat_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m",
        messages=HI,
        n=2,
        max_tokens=len(PIECES),
        stream=True,
        logprobs=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    for index in range(2):
        choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert choices[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in choices) == TEXT
        assert [c.finish_reason for c in choices] == [None] * (len(choices) - 1) + ["length"]
        tokens = [e.token for c in choices if c.logprobs for e in c.logprobs.content or []]
        assert tokens == PIECES
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[0].model_extra == {"parley": {"turns_left_out": 1}}


async def test_the_clients_own_accumulator_understands_a_chat_stream(
    client: openai.AsyncOpenAI,
) -> None:
    async with client.chat.completions.stream(model="m", messages=HI) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == TEXT


async def test_a_chat_stream_that_fails_raises_in_the_client(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="m", messages=HI, stream=True, user="fail")
    received = io.StringIO()

    async def read() -> None:
        async for chunk in stream:
            received.write(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIError, match="generator was lost") as failure:
        await read()
    assert received.getvalue() == TEXT
    assert failure.value.code == "generator_lost"


async def test_errors_arrive_as_the_clients_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.chat.completions.create(
            model="m", messages=HI, response_format={"type": "json_object"}
        )
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "response_format")
    with pytest.raises(openai.InternalServerError) as overload:
        await client.chat.completions.create(model="m", messages=HI, user="fail")
    assert (overload.value.status_code, overload.value.code) == (503, "overloaded")
    assert overload.value.response.headers["retry-after"] == "3"


async def test_a_completion_and_its_stream(client: openai.AsyncOpenAI) -> None:
    completion = await client.completions.create(model="m", prompt="hi")
    assert completion.choices[0].text == TEXT
    # Its type has no room for the null that OpenAI itself sends as a chunk's finish reason.
    lenient = client.copy(_extra_kwargs={"_strict_response_validation": False})
    stream = await lenient.completions.create(
        model="m", prompt=[1, 2], logprobs=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == TEXT
    offsets = [o for c in choices if c.logprobs for o in c.logprobs.text_offset or []]
    assert [TEXT[offset] for offset in offsets] == [piece[0] for piece in PIECES]
    assert choices[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None


async def test_a_response_and_its_stream(client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(model="m", input="hi", conversation="conv_1")
    assert (response.status, response.output_text) == ("completed", TEXT)
    stream = await client.responses.create(model="m", input=HI, stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == PIECES
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == TEXT


async def test_the_clients_own_accumulator_understands_a_response_stream(
    client: openai.AsyncOpenAI,
) -> None:
    async with client.responses.stream(model="m", input="hi") as stream:
        response = await stream.get_final_response()
    assert response.output_text == TEXT


async def test_a_response_stream_that_fails_ends_with_its_error(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="m", input="hi", stream=True, user="fail")
    last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.type == "generator_lost"


async def test_a_conversation_from_first_items_to_deletion(client: openai.AsyncOpenAI) -> None:
    items: Any = [{"role": "user", "content": f"message {number}"} for number in range(7)]
    conversation = await client.conversations.create(items=items, metadata={"k": "v"})
    assert conversation.metadata == {"k": "v"}
    listed = client.conversations.items.list(conversation.id, limit=3, order="asc")
    texts = [part.text async for item in listed for part in item.content]  # type: ignore[union-attr]
    assert texts == [f"message {number}" for number in range(7)]
    assert (await client.conversations.delete(conversation.id)).deleted


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["m"]
