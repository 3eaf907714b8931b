"""Items: messages as responses and conversations have them, coming in and going out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from serve_app.api.body import Neutral, WireModel, fault
from serve_app.api.content import ItemText, Role, template_role
from serve_app.api.ids import message_id
from serve_app.api.logprobs import token_logprob
from serve_app.api.reply import TokenLogprob
from serve_app.messages.dialogue import Item
from serve_app.messages.tokenization import Message

__all__ = ["InputItem", "item_object", "new_items", "output_message", "output_text"]


class InputItem(WireModel):
    """A message in the input; what a response or a conversation gave out can be sent back."""

    NEUTRAL: ClassVar[Neutral] = {"phase": ("final_answer",)}

    role: Role
    content: ItemText
    type: Literal["message"] = "message"
    id: str | None = Field(None, max_length=128)
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_message(cls, data: object) -> object:
        # Another kind of item lacks what messages have; its type is the fault to name.
        kind = data.get("type", "message") if isinstance(data, dict) else "message"
        if isinstance(kind, str) and kind != "message":
            predicate = "must be 'message': other items are not supported"
            raise fault("unsupported_parameter", predicate, "type")
        return data

    @model_validator(mode="after")
    def _user_says_something(self) -> InputItem:
        if self.role == "user" and not self.content:
            raise fault("invalid_value", "must not be empty: write what the user says", "content")
        return self

    def to_message(self) -> Message:
        """Return the message as the chat template takes it."""
        return Message(template_role(self.role), self.content)


def new_items(
    messages: Sequence[Message], *, created: int, response: str | None = None
) -> tuple[Item, ...]:
    """Return items to store, with new ids.

    Args:
        messages: what they say.
        created: Unix seconds.
        response: id of the response that they belong to the input of.
    """
    return tuple(
        Item(
            id=message_id(),
            role=message.role,
            content=message.content,
            response=response,
            created_at=created,
        )
        for message in messages
    )


def item_object(item: Item) -> dict[str, Any]:
    """Return a stored item as a client sees it."""
    if item.role == "assistant":
        return output_message(item.id, [output_text(item.content)], item.status)
    return {
        "id": item.id,
        "type": "message",
        "role": item.role,
        "status": item.status,
        "content": [{"type": "input_text", "text": item.content}],
    }


def output_message(item: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """Return a message of the model; `item` is its id."""
    return {
        "id": item,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def output_text(text: str, logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    """Return the one part of a message of the model."""
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": [token_logprob(entry) for entry in logprobs],
    }
