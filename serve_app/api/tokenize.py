"""POST /tokenize and /detokenize, in the form of vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import FailFast, Field, model_validator

from serve_app.api.body import Neutral, WireModel, fault
from serve_app.api.chat import ChatMessage
from serve_app.api.content import template_role
from serve_app.api.sampling import ModelName, TokenId
from serve_app.messages.tokenization import Message

__all__ = ["DetokenizeRequest", "TokenizeRequest", "detokenized", "tokenized"]


class TokenizeRequest(WireModel):
    """Body of POST /tokenize: a text or a conversation.

    Attributes:
        model: the served model, if the client says which.
        text: what to encode.
        prompt: another name for `text`, vLLM's.
        messages: a conversation to put through the chat template.
        add_special_tokens: for a text, add what the tokenizer adds, such as BOS.
        add_generation_prompt: for a conversation, add what makes the model answer.
    """

    NEUTRAL: ClassVar[Neutral] = {
        "continue_final_message": (False,),
        "return_token_strs": (False,),
        "tools": ([],),
    }

    model: ModelName | None = None
    text: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], FailFast()] = Field(default_factory=list)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> TokenizeRequest:
        given = self.text is not None, self.prompt is not None, bool(self.messages)
        if sum(given) != 1:
            raise fault("invalid_value", "must have exactly one of 'text', 'prompt' and 'messages'")
        if self.messages and self.add_special_tokens:
            predicate = "is for texts: the chat template has its own special tokens"
            raise fault("invalid_value", predicate, "add_special_tokens")
        if not self.messages and self.add_generation_prompt is not None:
            predicate = "is for conversations: send 'messages', or leave it out"
            raise fault("invalid_value", predicate, "add_generation_prompt")
        return self

    @property
    def source(self) -> str | tuple[Message, ...]:
        """The text, or the conversation as the chat template takes it."""
        if self.messages:
            return tuple(
                Message(template_role(message.role), message.content, message.name)
                for message in self.messages
            )
        return self.text if self.text is not None else self.prompt or ""

    @property
    def with_special_tokens(self) -> bool:
        """Whether a text gets the tokenizer's special tokens; it does unless told otherwise."""
        return self.add_special_tokens is not False

    @property
    def with_generation_prompt(self) -> bool:
        """Whether a conversation gets the generation prompt; it does unless told otherwise."""
        return self.add_generation_prompt is not False


class DetokenizeRequest(WireModel):
    """Body of POST /detokenize."""

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], FailFast()]


def tokenized(tokens: Sequence[int], *, context_length: int) -> dict[str, Any]:
    """Return what /tokenize answers."""
    return {"tokens": list(tokens), "count": len(tokens), "max_model_len": context_length}


def detokenized(text: str) -> dict[str, Any]:
    """Return what /detokenize answers: the text under our name and under vLLM's."""
    return {"text": text, "prompt": text}
