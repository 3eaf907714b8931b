"""The response object in each of its states: made new, or again from what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_app.api.items import output_message, output_text
from serve_app.api.reply import Extras, Reply, TokenLogprob, Usage, finish_reason
from serve_app.api.responses import ResponseRequest
from serve_app.api.sampling import SamplingDefaults
from serve_app.errors import InvalidRequest, Overloaded, ParleyError

__all__ = ["ENDED", "ResponseObject"]

ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""Values of `status` behind which nothing comes."""

_STATE = frozenset({"status", "output", "usage", "error", "incomplete_details", "completed_at"})


class ResponseObject:
    """Writes one response in each of its states.

    Attributes:
        response: its id, `resp_…`.
        item: id of its one output message, `msg_…`.
    """

    __slots__ = ("_constant", "_extras", "item", "response")

    def __init__(self, constant: dict[str, Any], extras: dict[str, Any], item: str) -> None:
        """Take what all states have in common.

        Args:
            constant: the object without what differs between its states.
            extras: what Parley adds.
            item: id of its output message.
        """
        self.response: str = constant["id"]
        self.item = item
        self._constant = constant
        self._extras = extras

    @classmethod
    def new(
        cls,
        request: ResponseRequest,
        *,
        response: str,
        item: str,
        model: str,
        created: int,
        stored: bool = False,
        defaults: SamplingDefaults | None = None,
    ) -> ResponseObject:
        """Begin a response.

        Args:
            request: what is answered; its parameters are part of the object.
            response: a new id.
            item: a new id.
            model: served name of the model.
            created: Unix seconds.
            stored: whether it is kept.
            defaults: what applied where the request said nothing.
        """
        own = defaults or SamplingDefaults()
        constant: dict[str, Any] = {
            "id": response,
            "object": "response",
            "created_at": created,
            "model": model,
            "background": request.background,
            "conversation": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": True,
            "previous_response_id": request.previous_response_id,
            "store": stored,
            "temperature": own.temperature if request.temperature is None else request.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": own.top_p if request.top_p is None else request.top_p,
            "truncation": request.truncation,
            "user": request.user,
        }
        return cls(constant, Extras().as_dict(), item)

    @classmethod
    def of(cls, stored: dict[str, Any], item: str) -> ResponseObject:
        """Take what was stored of a response, in whichever state it was.

        Args:
            stored: the response.
            item: id of its output message.
        """
        constant = {name: value for name, value in stored.items() if name not in _STATE}
        return cls(constant, constant.pop("parley"), item)

    def sampled_by(self, request: ResponseRequest, defaults: SamplingDefaults) -> None:
        """Say what applies where the request says nothing, once a persona has decided it."""
        if request.temperature is None:
            self._constant["temperature"] = defaults.temperature
        if request.top_p is None:
            self._constant["top_p"] = defaults.top_p

    def add(self, extras: Extras, conversation: str | None) -> None:
        """Say what is known from here on: what Parley adds, and the conversation."""
        self._extras = extras.as_dict()
        self._constant["conversation"] = None if conversation is None else {"id": conversation}

    def queued(self) -> dict[str, Any]:
        """Return the response before its turn has begun, when nothing is known of it."""
        nothing = {"conversation": None, "parley": Extras().as_dict()}
        return {**self._state("queued"), **nothing}

    def in_progress(self) -> dict[str, Any]:
        """Return the response before there is any text."""
        return self._state("in_progress")

    def finished(self, reply: Reply, usage: Usage, *, completed_at: int) -> dict[str, Any]:
        """Return the response with its text: completed, or incomplete if it met its token limit.

        Args:
            reply: how generation ended.
            usage: what it cost.
            completed_at: Unix seconds.

        Raises:
            ValueError: if it ended in an error.
        """
        cut = finish_reason(reply.reason) == "length"
        state = "incomplete" if cut else "completed"
        return self._state(
            state,
            output=[self.message(reply, state)],
            usage=usage.as_response_usage(),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            completed_at=None if cut else completed_at,
        )

    def failed(
        self, error: ParleyError, text: str = "", logprobs: Sequence[TokenLogprob] = ()
    ) -> dict[str, Any]:
        """Return the response that ended in an error, with what it had said by then."""
        return self._state("failed", output=self._said(text, logprobs), error=_error(error))

    def cancelled(self, text: str = "", logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
        """Return the response that somebody ended, with what it had said by then."""
        return self._state("cancelled", output=self._said(text, logprobs))

    def _said(self, text: str, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        part = output_text(text, logprobs)
        return [output_message(self.item, [part], "incomplete")] if text else []

    def message(self, reply: Reply, status: str) -> dict[str, Any]:
        """Return the output message."""
        return output_message(self.item, [output_text(reply.text, reply.logprobs or ())], status)

    def _state(
        self, status: str, *, output: Sequence[dict[str, Any]] = (), **rest: object
    ) -> dict[str, Any]:
        return {
            **self._constant,
            "status": status,
            "output": list(output),
            "usage": None,
            "error": None,
            "incomplete_details": None,
            "completed_at": None,
            **rest,
            "parley": self._extras,
        }


def _error(error: ParleyError) -> dict[str, Any]:
    """Return a response's `error`: OpenAI's codes are few there, so ours stands in `type`."""
    match error:
        case Overloaded():
            code = "rate_limit_exceeded"
        case InvalidRequest():
            code = "invalid_prompt"
        case _:
            code = "server_error"
    return {"code": code, "message": error.message, "param": error.param, "type": error.code}
