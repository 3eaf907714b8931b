"""Log probabilities in the two forms that OpenAI has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_app.api.reply import TokenLogprob

__all__ = ["LegacyLogprobs", "chat_logprobs", "token_logprob"]

# JSON has no -Infinity. OpenAI's own API writes this for tokens outside of the likeliest.
_LOWEST = -9999.0


def token_logprob(entry: TokenLogprob) -> dict[str, Any]:
    """Return an entry of `content` in chat completions, or of `logprobs` in responses."""
    return {**_alternative(entry), "top_logprobs": [_alternative(other) for other in entry.top]}


def chat_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return a chat choice's `logprobs`."""
    return {"content": [token_logprob(entry) for entry in entries], "refusal": None}


class LegacyLogprobs:
    """The `logprobs` of completions, whose offsets run over the whole text of a choice."""

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = 0

    def encode(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the object for the next tokens; offsets count characters from the first token."""
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry.token)
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [
                # Different tokens may read the same; the likelier one comes last and stays.
                {other.token: _finite(other.logprob) for other in reversed(entry.top)}
                for entry in entries
            ],
            "text_offset": offsets,
        }


def _alternative(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": entry.token,
        "logprob": _finite(entry.logprob),
        "bytes": list(entry.bytes),
    }


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
