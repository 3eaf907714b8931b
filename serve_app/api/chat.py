"""POST /v1/chat/completions: the request and the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import FailFast, Field, model_validator

from serve_app.api.body import Neutral, WireModel, fault
from serve_app.api.content import ChatText, Role, template_role
from serve_app.api.logprobs import chat_logprobs
from serve_app.api.reply import Extras, Reply, Usage, finish_reason
from serve_app.api.sampling import (
    NEUTRAL,
    GenerationFields,
    Metadata,
    ModelName,
    StreamOptions,
    TokenCount,
    Truncation,
)
from serve_app.messages.tokenization import Message

__all__ = ["ChatCompletionRequest", "ChatMessage", "chat_completion"]


class ChatMessage(WireModel):
    """One message; a reply's own message can be sent back as it came."""

    NEUTRAL: ClassVar[Neutral] = {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "prompt_cache_breakpoint": (),
        "refusal": (),
        "tool_call_id": (),
        "tool_calls": ([],),
    }

    role: Role
    content: ChatText
    name: str | None = Field(None, max_length=64)

    @model_validator(mode="after")
    def _user_says_something(self) -> ChatMessage:
        if self.role == "user" and not self.content:
            raise fault("invalid_value", "must not be empty: write what the user says", "content")
        return self


class ChatCompletionRequest(GenerationFields):
    """Body of POST /v1/chat/completions."""

    NEUTRAL: ClassVar[Neutral] = {
        **NEUTRAL,
        "add_generation_prompt": (True,),
        "audio": (),
        "continue_final_message": (False,),
        "echo": (False,),
        "function_call": ("auto", "none"),
        "functions": ([],),
        "modalities": (["text"],),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    model: ModelName
    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1)
    n: int = Field(1, ge=1, le=128)
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    truncation: Truncation = "auto"

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise fault("invalid_value", "needs 'logprobs' to be true", "top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise fault("invalid_value", "needs 'stream' to be true", "stream_options")
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            predicate = "contradicts 'max_completion_tokens': send only the latter"
            raise fault("invalid_value", predicate, "max_tokens")
        return self

    @property
    def token_limit(self) -> int | None:
        """Most new tokens that the request asks for; None leaves it to the server."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprobs_wanted(self) -> int | None:
        """Alternatives to report at each position; None for no log probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def include_usage(self) -> bool:
        """Whether the stream is to end with a chunk that carries the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def include_timing(self) -> bool:
        """Whether the stream is to end with a chunk that says where its time went."""
        return self.stream_options is not None and self.stream_options.include_timing

    def to_messages(self) -> tuple[Message, ...]:
        """Return the conversation as the chat template takes it."""
        return tuple(
            Message(template_role(message.role), message.content, message.name)
            for message in self.messages
        )


def chat_completion(
    *,
    completion: str,
    model: str,
    created: int,
    replies: Sequence[Reply],
    usage: Usage,
    extras: Extras,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the `chat.completion` object.

    Args:
        completion: its id, `chatcmpl-…`.
        model: served name of the model.
        created: Unix seconds.
        replies: the choices, by index.
        usage: what they cost together.
        extras: what Parley adds.
        metadata: the request's.
    """
    return {
        "id": completion,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice(index, reply) for index, reply in enumerate(replies)],
        "usage": usage.as_completion_usage(),
        "metadata": metadata,
        "parley": extras.as_dict(),
    }


def _choice(index: int, reply: Reply) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": reply.text, "refusal": None},
        "logprobs": None if reply.logprobs is None else chat_logprobs(reply.logprobs),
        "finish_reason": finish_reason(reply.reason),
    }
