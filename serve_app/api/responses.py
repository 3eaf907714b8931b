"""POST /v1/responses: the request, and the response object in each of its states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from serve_app.api.body import Neutral, WireModel, fault
from serve_app.api.ids import checked_conversation_id
from serve_app.api.items import InputItem, output_message, output_text
from serve_app.api.reply import Extras, Reply, Usage, finish_reason
from serve_app.api.sampling import (
    NEUTRAL,
    GenerationFields,
    Metadata,
    SamplingDefaults,
    TokenCount,
    Truncation,
)
from serve_app.errors import InvalidRequest, Overloaded, ParleyError
from serve_app.messages.tokenization import Message

__all__ = ["ConversationRef", "ResponseObject", "ResponseRequest"]


def _items(value: object) -> object:
    """Bring a plain string into the form of items."""
    if not isinstance(value, str | list):
        raise fault("invalid_type", "must be a string or an array of messages")
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _reference(value: object) -> object:
    if not isinstance(value, str | dict):
        raise fault("invalid_type", "must be a conversation's id, or an object with its id")
    return {"id": value} if isinstance(value, str) else value


class ConversationRef(WireModel):
    """Names a stored conversation."""

    id: str


class ResponseRequest(GenerationFields):
    """Body of POST /v1/responses."""

    NEUTRAL: ClassVar[Neutral] = {
        **NEUTRAL,
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "image": (),
        "max_tool_calls": (),
        "previous_response_id": (),
        "prompt": (),
        "reasoning": ({}, {"effort": "none"}),
        "stream_options": ({}, {"include_obfuscation": False}),
        "text": (
            {},
            {"format": {"type": "text"}},
            {"verbosity": "medium"},
            {"format": {"type": "text"}, "verbosity": "medium"},
        ),
    }

    input: Annotated[list[InputItem], FailFast(), BeforeValidator(_items)] = Field(min_length=1)
    instructions: str | None = None
    conversation: Annotated[ConversationRef | None, BeforeValidator(_reference)] = None
    max_output_tokens: TokenCount | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Annotated[list[Literal["message.output_text.logprobs"]], FailFast()] = Field(
        default_factory=list
    )
    metadata: Metadata | None = None
    truncation: Truncation = "auto"

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ResponseRequest:
        if self.top_logprobs and not self.include:
            predicate = "needs 'include' to have 'message.output_text.logprobs'"
            raise fault("invalid_value", predicate, "top_logprobs")
        return self

    @property
    def token_limit(self) -> int | None:
        """Most new tokens that the request asks for; None leaves it to the server."""
        return self.max_output_tokens

    @property
    def logprobs_wanted(self) -> int | None:
        """Alternatives to report at each position; None for no log probabilities at all."""
        return (self.top_logprobs or 0) if self.include else None

    @property
    def conversation_id(self) -> str | None:
        """The conversation that the turn belongs to.

        Raises:
            ConversationNotFound: if what was sent can't be the id of one.
        """
        return None if self.conversation is None else checked_conversation_id(self.conversation.id)

    def to_messages(self) -> tuple[Message, ...]:
        """Return the input as the chat template takes it, without `instructions`."""
        return tuple(item.to_message() for item in self.input)


class ResponseObject:
    """Writes one response in each of its states.

    Attributes:
        response: its id, `resp_…`.
        item: id of its one output message, `msg_…`.
    """

    __slots__ = ("_constant", "item", "response")

    def __init__(
        self,
        request: ResponseRequest,
        *,
        response: str,
        item: str,
        model: str,
        created: int,
        extras: Extras,
        defaults: SamplingDefaults | None = None,
    ) -> None:
        """Take what all states have in common.

        Args:
            request: what is answered; its parameters are part of the object.
            response: a new id.
            item: a new id.
            model: served name of the model.
            created: Unix seconds.
            extras: what Parley adds.
            defaults: what applied where the request said nothing.
        """
        self.response = response
        self.item = item
        own = defaults or SamplingDefaults()
        conversation = request.conversation_id
        self._constant: dict[str, Any] = {
            "id": response,
            "object": "response",
            "created_at": created,
            "model": model,
            "background": False,
            "conversation": None if conversation is None else {"id": conversation},
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": own.temperature if request.temperature is None else request.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": own.top_p if request.top_p is None else request.top_p,
            "truncation": request.truncation,
            "user": request.user,
            "parley": extras.as_dict(),
        }

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

    def failed(self, error: ParleyError, text: str = "") -> dict[str, Any]:
        """Return the response that ended in an error, with what it had said by then."""
        output = [output_message(self.item, [output_text(text)], "incomplete")] if text else []
        return self._state("failed", output=output, error=_error(error))

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
