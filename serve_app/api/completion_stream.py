"""The event stream of POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from serve_app.api.account import account_object
from serve_app.api.logprobs import LegacyLogprobs
from serve_app.api.reply import TokenLogprob, Usage, finish_reason
from serve_app.api.sse import HOLE, cut, sse_event
from serve_app.messages.generation import FinishReason
from serve_app.telemetry.account import Account

__all__ = ["CompletionStreamEncoder"]


class CompletionStreamEncoder:
    """Encodes the events of one choice.

    A stream is any number of `delta`s, then `finish`; of every choice, in any mixture. Then
    `usage` and `timing`, by any choice's encoder, if they were asked for, and `sse.DONE`. A stream
    that can't go on ends with `errors.error_event` instead.
    """

    __slots__ = (
        "_constant",
        "_head",
        "_include_usage",
        "_index",
        "_logprob_pieces",
        "_logprobs",
        "_tail",
    )

    def __init__(
        self, *, completion: str, model: str, created: int, choice: int = 0, include_usage: bool
    ) -> None:
        """Prepare the constant parts.

        Args:
            completion: its id, `cmpl-…`.
            model: served name of the model.
            created: Unix seconds.
            choice: index of the choice.
            include_usage: whether the stream has a usage chunk; the other chunks then say null.
        """
        self._constant = {
            "id": completion,
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._index = choice
        self._include_usage = include_usage
        self._logprobs = LegacyLogprobs()
        self._head, self._tail = cut(self._body(HOLE), holes=1)
        self._logprob_pieces = cut(self._body(HOLE, logprobs=HOLE), holes=2)

    def delta(self, text: str, logprobs: Sequence[TokenLogprob] | None = None) -> bytes:
        """Return the event for the next piece of text; `logprobs` are those of its tokens."""
        if logprobs is None:
            return self._head + orjson.dumps(text) + self._tail
        head, middle, tail = self._logprob_pieces
        encoded = orjson.dumps(self._logprobs.encode(logprobs))
        return head + orjson.dumps(text) + middle + encoded + tail

    def finish(self, reason: FinishReason) -> bytes:
        """Return the choice's last event.

        Raises:
            ValueError: if `reason` is an error.
        """
        return sse_event(self._body("", reason=finish_reason(reason)))

    def usage(self, usage: Usage) -> bytes:
        """Return the event behind all choices that says what they cost together."""
        body = {**self._constant, "choices": [], "usage": usage.as_completion_usage()}
        return sse_event(body)

    def timing(self, account: Account) -> bytes:
        """Return the last event, which says where the time of the request went."""
        body = {**self._constant, "choices": [], "parley": {"timing": account_object(account)}}
        if self._include_usage:
            body["usage"] = None
        return sse_event(body)

    def _body(
        self, text: str, logprobs: str | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {
            "index": self._index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        body = {**self._constant, "choices": [choice]}
        if self._include_usage:
            body["usage"] = None
        return body
