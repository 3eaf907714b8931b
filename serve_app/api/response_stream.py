"""The event stream of POST /v1/responses.

Every event has a `sequence_number`, one more than the last one's, which is its `id:` too, and is a
`bytes` of its own, so that a stream can be kept and resumed by event. What is stored of a response
is enough to make all of its events again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from serve_app.api.items import output_message, output_text
from serve_app.api.logprobs import token_logprob
from serve_app.api.reply import Reply, TokenLogprob, Usage
from serve_app.api.response_object import ResponseObject
from serve_app.api.sse import HOLE, cut, numbered, sse_event
from serve_app.errors import ParleyError
from serve_app.messages.generation import FinishReason

__all__ = ["ResponseStreamEncoder", "response_error_event"]

_DELTA = "response.output_text.delta"


class ResponseStreamEncoder:
    """Encodes the events of one response.

    A stream is `queued` where the response runs in the background, `start`, any number of `delta`s,
    and `end`, which may come at any point behind the first event. The last event is the only one of
    response.completed, response.incomplete, response.failed.

    Attributes:
        next_sequence_number: of the event to come.
        text: everything sent so far.
        cuts: length of each piece of text, and how many log probabilities came with it.
        began: whether `start` was sent.
    """

    __slots__ = (
        "_head",
        "_logprobs",
        "_middle",
        "_object",
        "_pieces",
        "_tail",
        "began",
        "cuts",
        "next_sequence_number",
    )

    def __init__(self, response: ResponseObject) -> None:
        """Prepare the constant parts."""
        self._object = response
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.cuts: list[tuple[int, int]] = []
        self.began = False
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

    def queued(self) -> list[bytes]:
        """Return the events that tell that the response waits in the background."""
        response = self._object.queued()
        return [
            self._event("response.created", response=response),
            self._event("response.queued", response=response),
        ]

    def start(self) -> list[bytes]:
        """Return the events before the first text."""
        self.began = True
        response = self._object.in_progress()
        item = output_message(self._object.item, [], "in_progress")
        created = (
            []
            if self.next_sequence_number
            else [self._event("response.created", response=response)]
        )
        return [
            *created,
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **self._place(), part=output_text("")),
        ]

    def delta(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Return the event for the next piece of text; `logprobs` are those of its tokens."""
        self._logprobs.extend(logprobs)
        return self._delta(text, [token_logprob(entry) for entry in logprobs])

    def finish(self, reason: FinishReason, usage: Usage, *, completed_at: int) -> list[bytes]:
        """Return the events behind the last text.

        Args:
            reason: how generation ended.
            usage: what it cost.
            completed_at: Unix seconds.

        Raises:
            ValueError: if `reason` is an error.
        """
        return self.end(self.finished(reason, usage, completed_at=completed_at))

    def finished(self, reason: FinishReason, usage: Usage, *, completed_at: int) -> dict[str, Any]:
        """Return the response with all that was sent of it; see `finish`."""
        reply = Reply(self.text, reason, self._logprobs)
        return self._object.finished(reply, usage, completed_at=completed_at)

    def end(self, response: dict[str, Any]) -> list[bytes]:
        """Return the events that tell of the response as it ended."""
        status = response["status"]
        if status == "failed":
            return [self._event("response.failed", response=response)]
        if status == "cancelled":
            # OpenAI has no event of that name; its clients take this one for an end.
            return [self._event("response.incomplete", response=response)]
        (item,) = response["output"]
        (part,) = item["content"]
        place = self._place()
        return [
            self._event(
                "response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"]
            ),
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{status}", response=response),
        ]

    def fail(self, error: ParleyError) -> bytes:
        """Return the event that ends a stream which can't go on."""
        return b"".join(self.end(self.failed(error)))

    def failed(self, error: ParleyError) -> dict[str, Any]:
        """Return the response that ended in an error, with all that was sent of it."""
        return self._object.failed(error, self.text, self._logprobs)

    def cancelled(self) -> dict[str, Any]:
        """Return the response that somebody ended, with all that was sent of it."""
        return self._object.cancelled(self.text, self._logprobs)

    @classmethod
    def replay(cls, record: dict[str, Any]) -> list[bytes]:
        """Make all events of an ended response again.

        Args:
            record: what is stored of it: `response`, `item`, `began`, and `cuts`.
        """
        response = record["response"]
        encoder = cls(ResponseObject.of(response, record["item"]))
        events = encoder.queued() if response["background"] else []
        if record["began"]:
            events += encoder.start()
            output = response["output"]
            said = output[0]["content"][0] if output else output_text("")
            text_at = logprob_at = 0
            for length, count in record["cuts"]:
                text = said["text"][text_at : text_at + length]
                logprobs = said["logprobs"][logprob_at : logprob_at + count]
                events.append(encoder._delta(text, logprobs))
                text_at, logprob_at = text_at + length, logprob_at + count
        return events + encoder.end(response)

    def _delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> bytes:
        self._pieces.append(text)
        self.cuts.append((len(text), len(logprobs)))
        encoded = orjson.dumps(logprobs) if logprobs else b"[]"
        before_number, tail = self._tail
        number = b"%d" % self.next_sequence_number
        self.next_sequence_number += 1
        event = b"".join(
            (self._head, orjson.dumps(text), self._middle, encoded, before_number, number, tail)
        )
        return numbered(event, number)

    def _place(self) -> dict[str, Any]:
        """Return where the one text part stands in the response."""
        return {"item_id": self._object.item, "output_index": 0, "content_index": 0}

    def _event(self, name: str, **fields: object) -> bytes:
        number = b"%d" % self.next_sequence_number
        body = {"type": name, **fields, "sequence_number": self.next_sequence_number}
        self.next_sequence_number += 1
        return numbered(sse_event(body, name), number)


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
