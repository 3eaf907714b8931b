"""What a question and its streamed reply look like on the wire, for each API that has chats."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import orjson

from load.measurements import Reply, TokenCounts
from load.workload import Workload
from serve_app.messages.tokenization import Message

__all__ = [
    "MODES",
    "ChatStream",
    "CompletionStream",
    "Mode",
    "ReplyStream",
    "ResponseStream",
    "error_kind",
    "refusal_kind",
]

Mode = Literal["chat", "completions", "responses"]


class ReplyStream(ABC):
    """Reads one reply out of server-sent events; one subclass per API.

    Attributes:
        PATH: where questions are posted.
        reply: when what of it arrived.
        complete: whether the event has come that ends a reply.
        text: what the reply says.
    """

    PATH: ClassVar[str]

    def __init__(self) -> None:
        self.reply = Reply(sent_at=time.perf_counter())
        self.complete = False
        self._pieces: list[str] = []
        self._rest = b""

    @staticmethod
    @abstractmethod
    def body(model: str, messages: Sequence[Message], workload: Workload) -> dict[str, Any]:
        """Return the question as JSON.

        Args:
            model: who is asked.
            messages: the conversation so far.
            workload: says how long the reply may be, and how it is sampled.
        """

    @abstractmethod
    def _take(self, event: dict[str, Any], now: float) -> None:
        """Read one event."""

    @property
    def text(self) -> str:
        """What the reply says so far."""
        return "".join(self._pieces)

    def feed(self, piece: bytes) -> None:
        """Take a piece of the body as it arrives, wherever it begins and ends."""
        now = time.perf_counter()
        data = self._rest + piece
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        for event in events:
            self._read(event, now)

    def failed(self, kind: str) -> None:
        """Take note that something went wrong; what went wrong first is what counts."""
        if self.reply.error is None:
            self.reply.error = kind

    def _read(self, event: bytes, now: float) -> None:
        for line in event.split(b"\n"):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].lstrip()
            if data == b"[DONE]":
                self.complete = True
                return
            try:
                self._take(orjson.loads(data), now)
            except (ValueError, KeyError, TypeError, AttributeError):
                self.failed("malformed event")

    def _heard(self, text: str, now: float) -> None:
        self._pieces.append(text)
        self.reply.arrived(now)


class _ChoiceStream(ReplyStream):
    """What both kinds of completions have in common: events of choices, and usage at the end."""

    @staticmethod
    @abstractmethod
    def _text(choice: dict[str, Any]) -> str | None:
        """Return what an event's choice adds to the reply."""

    def _take(self, event: dict[str, Any], now: float) -> None:
        if (error := event.get("error")) is not None:
            self.failed(error_kind(error))
            return
        for choice in event["choices"]:
            if text := self._text(choice):
                self._heard(text, now)
        if (usage := event.get("usage")) is not None:
            self.reply.tokens = _counts(usage, "prompt", "completion")


def _options(workload: Workload) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_tokens": workload.output_tokens,
        "temperature": workload.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.ignore_eos:
        options["ignore_eos"] = True
    return options


class ChatStream(_ChoiceStream):
    """POST /v1/chat/completions."""

    PATH = "/chat/completions"

    @staticmethod
    def body(model: str, messages: Sequence[Message], workload: Workload) -> dict[str, Any]:
        """Return the question as JSON; see `ReplyStream.body`."""
        return {
            "model": model,
            "messages": _as_json(messages),
            **_options(workload),
        }

    @staticmethod
    def _text(choice: dict[str, Any]) -> str | None:
        text: str | None = choice["delta"].get("content")
        return text


class CompletionStream(_ChoiceStream):
    """POST /v1/completions, with what was said so far as one text."""

    PATH = "/completions"

    @staticmethod
    def body(model: str, messages: Sequence[Message], workload: Workload) -> dict[str, Any]:
        """Return the question as JSON; see `ReplyStream.body`."""
        return {
            "model": model,
            "prompt": "\n".join(message.content for message in messages),
            **_options(workload),
        }

    @staticmethod
    def _text(choice: dict[str, Any]) -> str | None:
        text: str | None = choice.get("text")
        return text


class ResponseStream(ReplyStream):
    """POST /v1/responses, with the whole conversation as its input."""

    PATH = "/responses"

    @staticmethod
    def body(model: str, messages: Sequence[Message], workload: Workload) -> dict[str, Any]:
        """Return the question as JSON; see `ReplyStream.body`."""
        body: dict[str, Any] = {
            "model": model,
            "input": _as_json(messages),
            "max_output_tokens": workload.output_tokens,
            "temperature": workload.temperature,
            "stream": True,
            "store": False,
        }
        if workload.ignore_eos:
            body["ignore_eos"] = True
        return body

    @staticmethod
    def stored(
        model: str, message: Message, workload: Workload, conversation: str
    ) -> dict[str, Any]:
        """Return a question for a conversation that the server stores: nothing but what is new."""
        body = ResponseStream.body(model, (message,), workload)
        del body["store"]
        return body | {"conversation": conversation}

    def _take(self, event: dict[str, Any], now: float) -> None:
        match event["type"]:
            case "response.output_text.delta":
                self._heard(event["delta"], now)
            case "response.completed" | "response.incomplete":
                self.complete = True
                if (usage := event["response"].get("usage")) is not None:
                    self.reply.tokens = _counts(usage, "input", "output")
            case "response.failed":
                self.failed(error_kind(event["response"].get("error")))
            case "error":
                self.failed(error_kind(event.get("error", event)))


MODES: dict[Mode, type[ReplyStream]] = {
    "chat": ChatStream,
    "completions": CompletionStream,
    "responses": ResponseStream,
}


def error_kind(error: object) -> str:
    """Return what to count an error object by: its code, else its type."""
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or "error event")
    return "error event"


def refusal_kind(status: int, body: bytes | bytearray) -> str:
    """Return what to count a refusal by: its status, and its code if it has one."""
    try:
        return f"{status} {error_kind(orjson.loads(body)['error'])}"
    except (ValueError, KeyError, TypeError):
        return str(status)


def _as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _counts(usage: dict[str, Any], prompt: str, completion: str) -> TokenCounts:
    details = usage.get(f"{prompt}_tokens_details") or {}
    return TokenCounts(
        prompt=usage[f"{prompt}_tokens"],
        cached=details.get("cached_tokens") or 0,
        completion=usage[f"{completion}_tokens"],
    )
