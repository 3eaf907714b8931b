"""POST /v1/completions: the request and the response; no chat template is involved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from serve_app.api.body import Neutral, fault
from serve_app.api.logprobs import LegacyLogprobs
from serve_app.api.reply import Extras, Reply, Usage, finish_reason
from serve_app.api.sampling import (
    NEUTRAL,
    GenerationFields,
    ModelName,
    StreamOptions,
    TokenCount,
    check_token_ids,
)

__all__ = ["CompletionRequest", "Prompt", "completion_object"]

MAX_PROMPTS = 128
DEFAULT_MAX_TOKENS = 16  # OpenAI's

Prompt = str | tuple[int, ...]
"""Text or token ids."""


def _prompts(value: object) -> tuple[Prompt, ...]:
    """Bring the four forms that a prompt can have into one."""
    if isinstance(value, str):
        return (_prompt(value),)
    if not isinstance(value, list):
        raise fault("invalid_type", "must be a string or an array")
    if not value:
        raise fault("invalid_value", "must not be empty")
    if type(value[0]) is int:
        return (_prompt(value),)
    if len(value) > MAX_PROMPTS:
        raise fault("invalid_value", f"must have at most {MAX_PROMPTS} prompts")
    return tuple(_prompt(prompt, index) for index, prompt in enumerate(value))


def _prompt(value: object, *path: int) -> Prompt:
    if not isinstance(value, str | list):
        raise fault("invalid_type", "must be a string or an array of token ids", *path)
    if not value:
        raise fault("invalid_value", "must not be empty", *path)
    if isinstance(value, str):
        return value
    for index, token in enumerate(value):
        if type(token) is not int:
            raise fault("invalid_type", "must be a token id", *path, index)
    return tuple(value)


class CompletionRequest(GenerationFields):
    """Body of POST /v1/completions."""

    NEUTRAL: ClassVar[Neutral] = {
        **NEUTRAL,
        "add_special_tokens": (True,),
        "best_of": (1,),
        "echo": (False,),
        "metadata": ({},),
        "response_format": ({"type": "text"},),
        "suffix": ("",),
        "truncation": ("disabled",),  # which is what is done: nothing leaves a prompt
    }

    model: ModelName
    prompt: Annotated[tuple[Prompt, ...], BeforeValidator(_prompts)]
    n: int = Field(1, ge=1, le=128)
    max_tokens: TokenCount = DEFAULT_MAX_TOKENS
    logprobs: int | None = Field(None, ge=0, le=20)
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise fault("invalid_value", "needs 'stream' to be true", "stream_options")
        return self

    @property
    def token_limit(self) -> int | None:
        """Most new tokens that the request asks for."""
        return self.max_tokens

    @property
    def logprobs_wanted(self) -> int | None:
        """Alternatives to report at each position; None for no log probabilities at all."""
        return self.logprobs

    @property
    def include_usage(self) -> bool:
        """Whether the stream is to end with a chunk that carries the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def include_timing(self) -> bool:
        """Whether the stream is to end with a chunk that says where its time went."""
        return self.stream_options is not None and self.stream_options.include_timing

    def checked_prompts(self, vocab_size: int) -> tuple[Prompt, ...]:
        """Return the prompts; choice `i` of prompt `p` has the index `p * n + i`.

        Raises:
            InvalidRequest: if a prompt has a token id that the model doesn't know.
        """
        for prompt in self.prompt:
            if not isinstance(prompt, str):
                check_token_ids(prompt, vocab_size, "prompt")
        return self.prompt


def completion_object(
    *,
    completion: str,
    model: str,
    created: int,
    replies: Sequence[Reply],
    usage: Usage,
    extras: Extras,
) -> dict[str, Any]:
    """Return the `text_completion` object.

    Args:
        completion: its id, `cmpl-…`.
        model: served name of the model.
        created: Unix seconds.
        replies: the choices, by index.
        usage: what they cost together.
        extras: what Parley adds.
    """
    return {
        "id": completion,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [_choice(index, reply) for index, reply in enumerate(replies)],
        "usage": usage.as_completion_usage(),
        "parley": extras.as_dict(),
    }


def _choice(index: int, reply: Reply) -> dict[str, Any]:
    return {
        "index": index,
        "text": reply.text,
        "logprobs": None if reply.logprobs is None else LegacyLogprobs().encode(reply.logprobs),
        "finish_reason": finish_reason(reply.reason),
    }
