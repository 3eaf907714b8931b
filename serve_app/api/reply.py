"""What a generation came to, before any API gives it its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serve_app.messages.generation import Finished, FinishReason

__all__ = ["Extras", "Reply", "TokenLogprob", "Usage", "finish_reason"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was chosen, or could have been.

    Attributes:
        token: its text; bytes that are no UTF-8 on their own show as U+FFFD.
        bytes: its bytes.
        logprob: natural log of its probability.
        top: the likeliest tokens at its position, likeliest first.
    """

    token: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished choice.

    Attributes:
        text: everything that was generated.
        reason: STOP or LENGTH; anything else is an error, see `errors.failure`.
        logprobs: one per token, if they were asked for.
    """

    text: str
    reason: FinishReason
    logprobs: Sequence[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request cost.

    Attributes:
        prompt_tokens: length of the prompt, counted once for all choices.
        cached_tokens: how many of them came from the prefix cache.
        completion_tokens: tokens generated, over all choices.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, choices: Sequence[Finished]) -> Usage:
        """Add up the choices of one prompt.

        Later choices find the first one's prompt in the cache; what counts as cached is what the
        one that computed most has found there.
        """
        return cls(
            prompt_tokens=max(choice.prompt_tokens for choice in choices),
            cached_tokens=min(choice.cached_tokens for choice in choices),
            completion_tokens=sum(choice.completion_tokens for choice in choices),
        )

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def as_completion_usage(self) -> dict[str, Any]:
        """Return OpenAI's `usage` of chat completions and completions."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def as_response_usage(self) -> dict[str, Any]:
        """Return OpenAI's `usage` of responses."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Extras:
    """What Parley says beyond OpenAI's format, in the object `parley`.

    Attributes:
        turns_left_out: how many of the oldest turns the prompt did without.
        explained: what the persona understood and decided, or None where none answers.
    """

    turns_left_out: int = 0
    explained: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the value of `parley`."""
        return {"turns_left_out": self.turns_left_out, **(self.explained or {})}


def finish_reason(reason: FinishReason) -> Literal["stop", "length"]:
    """Return OpenAI's name for how a choice ended.

    Raises:
        ValueError: if it ended in an error; those have no finish reason.
    """
    match reason:
        case FinishReason.STOP:
            return "stop"
        case FinishReason.LENGTH:
            return "length"
        case (
            FinishReason.CANCELLED
            | FinishReason.DEADLINE
            | FinishReason.ERROR
            | FinishReason.HANDED_BACK
        ):
            msg = f"A choice that ended with {reason.value!r} is an error, not a reply."
            raise ValueError(msg)
