"""The event stream of POST /v1/responses.

Every event has a `sequence_number`, one more than the last one's, and is a `bytes` of its own, so
that a stream can be kept and resumed by event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from serve_app.api.items import output_message, output_text
from serve_app.api.logprobs import token_logprob
from serve_app.api.reply import Reply, TokenLogprob, Usage
from serve_app.api.responses import ResponseObject
from serve_app.api.sse import HOLE, cut, sse_event
from serve_app.errors import ParleyError
from serve_app.messages.generation import FinishReason

__all__ = ["ResponseStreamEncoder", "response_error_event"]

_DELTA = "response.output_text.delta"


class ResponseStreamEncoder:
    """Encodes the events of one response.

    A stream is `start`, any number of `delta`s, `finish`; or `fail` at any point behind `start`.
    The last event is the only one of response.completed, response.incomplete, response.failed.

    Attributes:
        next_sequence_number: of the event to come.
        text: everything sent so far.
    """

    __slots__ = (
        "_head",
        "_logprobs",
        "_middle",
        "_object",
        "_pieces",
        "_tail",
        "next_sequence_number",
    )

    def __init__(self, response: ResponseObject) -> None:
        """Prepare the constant parts."""
        self._object = response
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.next_sequence_number = 0
        body = {
            "type": _DELTA,
            **self._place(),
            "delta": HOLE,
            "logprobs": HOLE,
            "sequence_number": HOLE,
        }
        self._head, self._middle, *self._tail = cut(body, holes=3, name=_DELTA)

    @property
    def text(self) -> str:
        """Everything sent so far."""
        return "".join(self._pieces)

    def start(self) -> list[bytes]:
        """Return the events before the first text."""
        response = self._object.in_progress()
        item = output_message(self._object.item, [], "in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **self._place(), part=output_text("")),
        ]

    def delta(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Return the event for the next piece of text; `logprobs` are those of its tokens."""
        self._pieces.append(text)
        encoded = b"[]"
        if logprobs:
            self._logprobs.extend(logprobs)
            encoded = orjson.dumps([token_logprob(entry) for entry in logprobs])
        before_number, tail = self._tail
        number = b"%d" % self.next_sequence_number
        self.next_sequence_number += 1
        return b"".join(
            (self._head, orjson.dumps(text), self._middle, encoded, before_number, number, tail)
        )

    def finish(self, reason: FinishReason, usage: Usage, *, completed_at: int) -> list[bytes]:
        """Return the events behind the last text.

        Args:
            reason: how generation ended.
            usage: what it cost.
            completed_at: Unix seconds.

        Raises:
            ValueError: if `reason` is an error.
        """
        reply = Reply(self.text, reason, self._logprobs)
        response = self._object.finished(reply, usage, completed_at=completed_at)
        (item,) = response["output"]
        (part,) = item["content"]
        place = self._place()
        return [
            self._event(
                "response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"]
            ),
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{response['status']}", response=response),
        ]

    def fail(self, error: ParleyError) -> bytes:
        """Return the event that ends a stream which can't go on."""
        return self._event("response.failed", response=self._object.failed(error, self.text))

    def _place(self) -> dict[str, Any]:
        """Return where the one text part stands in the response."""
        return {"item_id": self._object.item, "output_index": 0, "content_index": 0}

    def _event(self, name: str, **fields: object) -> bytes:
        body = {"type": name, **fields, "sequence_number": self.next_sequence_number}
        self.next_sequence_number += 1
        return sse_event(body, name)


def response_error_event(error: ParleyError, sequence_number: int) -> bytes:
    """Return the event for an error outside of any response, such as one before it was created."""
    body = {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "sequence_number": sequence_number,
    }
    return sse_event(body, "error")
