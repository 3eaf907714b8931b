"""POST /v1/responses: the request."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from serve_app.api.body import Neutral, WireModel, fault
from serve_app.api.ids import checked_conversation_id
from serve_app.api.items import InputItem
from serve_app.api.sampling import (
    NEUTRAL,
    GenerationFields,
    Metadata,
    ModelName,
    PersonaName,
    TokenCount,
    Truncation,
)
from serve_app.messages.tokenization import Message
from serve_app.state.keyspace import conversation_of

__all__ = ["ConversationRef", "OnBusy", "ResponseRequest"]

OnBusy = Literal["enqueue", "reject", "interrupt"]
"""What a turn does while another one of its conversation runs."""


def _items(value: object) -> object:
    """Bring a plain string into the form of items."""
    if not isinstance(value, str | list):
        raise fault("invalid_type", "must be a string or an array of messages")
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _reference(value: object) -> object:
    if not isinstance(value, str | dict):
        raise fault("invalid_type", "must be a conversation's id, or an object with its id")
    return {"id": value} if isinstance(value, str) else value


class ResponseStreamOptions(WireModel):
    """How a stream of a response is sent."""

    NEUTRAL: ClassVar[Neutral] = {"include_obfuscation": (False,)}

    include_timing: bool = False


class ConversationRef(WireModel):
    """Names a stored conversation."""

    id: str


class ResponseRequest(GenerationFields):
    """Body of POST /v1/responses."""

    NEUTRAL: ClassVar[Neutral] = {
        **{name: values for name, values in NEUTRAL.items() if name != "store"},
        "access_programs": (),
        "background_options": (),
        "context_management": ([],),
        "image": (),
        "max_tool_calls": (),
        "prompt": (),
        "reasoning": ({}, {"effort": "none"}),
        "text": (
            {},
            {"format": {"type": "text"}},
            {"verbosity": "medium"},
            {"format": {"type": "text"}, "verbosity": "medium"},
        ),
    }

    model: ModelName | None = None
    input: Annotated[list[InputItem], FailFast(), BeforeValidator(_items)] = Field(
        default_factory=list
    )
    instructions: str | None = None
    conversation: Annotated[ConversationRef | None, BeforeValidator(_reference)] = None
    previous_response_id: str | None = Field(None, max_length=256)
    replaces: str | None = Field(None, max_length=256)
    on_busy: OnBusy | None = None
    store: bool | None = None
    background: bool = False
    max_output_tokens: TokenCount | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Annotated[list[Literal["message.output_text.logprobs"]], FailFast()] = Field(
        default_factory=list
    )
    stream_options: ResponseStreamOptions | None = None
    metadata: Metadata | None = None
    persona: PersonaName | None = None
    truncation: Truncation = "auto"

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ResponseRequest:
        if self.top_logprobs and not self.include:
            predicate = "needs 'include' to have 'message.output_text.logprobs'"
            raise fault("invalid_value", predicate, "top_logprobs")
        if not self.input and self.replaces is None:
            if "input" in self.model_fields_set:
                raise fault("invalid_value", "must have at least one message", "input")
            raise fault("missing_required_parameter", "is required", "input")
        if self.previous_response_id and (self.conversation or self.replaces):
            predicate = "can't be sent together with 'conversation' or 'replaces'"
            raise fault("invalid_value", predicate, "previous_response_id")
        if self.include_timing and not self.stream:
            predicate = (
                "needs 'stream' to be true; other replies say it in the header Server-Timing"
            )
            raise fault("invalid_value", predicate, "stream_options", "include_timing")
        if self.store is False and (self.background or self.replaces):
            predicate = "must not be false with 'background' or 'replaces'"
            raise fault("invalid_value", predicate, "store")
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
    def include_timing(self) -> bool:
        """Whether the last event says where the time of the request went."""
        return self.stream_options is not None and self.stream_options.include_timing

    @property
    def conversation_id(self) -> str | None:
        """The conversation that the turn belongs to.

        Raises:
            ConversationNotFound: if what was sent can't be the id of one.
        """
        return None if self.conversation is None else checked_conversation_id(self.conversation.id)

    @property
    def place(self) -> str | None:
        """The conversation, known to clients or not, that the turn belongs to; None begins one.

        Raises:
            ConversationNotFound: if what was sent can't be the id of one.
            ResponseNotFound: if what is continued or replaced can't be a response's id.
        """
        other = self.previous_response_id or self.replaces
        return conversation_of(other) if other else self.conversation_id

    @property
    def user_name(self) -> str | None:
        """Whose turn it is among the tenant's users, as far as the request says."""
        return self.user or self.safety_identifier

    def to_messages(self) -> tuple[Message, ...]:
        """Return the input as the chat template takes it, without `instructions`."""
        return tuple(item.to_message() for item in self.input)
