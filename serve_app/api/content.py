"""Text in messages: a string, or an array of parts that are all text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator

from serve_app.api.body import Neutral, fault, refuse_unless_neutral

__all__ = ["ChatText", "ItemText", "Role", "template_role"]


@dataclass(frozen=True, slots=True)
class _Parts:
    """Which parts a content may have.

    Attributes:
        kinds: values of `type` that are text.
        neutral: further fields, each with the values besides null that ask for nothing.
        echoed: fields that a reply's own parts carry when a client sends them back.
    """

    kinds: tuple[str, ...]
    neutral: Neutral
    echoed: frozenset[str] = field(default=frozenset())

    def join(self, value: object) -> str:
        """Return the text of a content.

        Parts are joined with line breaks, as vLLM and llama.cpp's server do.
        """
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise fault("invalid_type", "must be a string or an array of text parts")
        if not value:
            raise fault("invalid_value", "must not be empty")
        return "\n".join(self._text(part, index) for index, part in enumerate(value))

    def _text(self, part: object, index: int) -> str:
        if not isinstance(part, dict):
            raise fault("invalid_type", "must be an object", index)
        kind = part.get("type")
        if not isinstance(kind, str):
            raise fault("invalid_type", "must be a string", index, "type")
        if kind not in self.kinds:
            predicate = f"must be {' or '.join(map(repr, self.kinds))}: only text is supported"
            raise fault("unsupported_parameter", predicate, index, "type")
        text = part.get("text")
        if not isinstance(text, str):
            raise fault("invalid_type", "must be a string", index, "text")
        for name in part.keys() - {"type", "text"} - self.echoed:
            if name not in self.neutral:
                predicate = "is not a parameter of text parts: remove it"
                raise fault("unsupported_parameter", predicate, index, name)
            refuse_unless_neutral((index, name), part[name], self.neutral[name])
        return text


_CHAT_PARTS = _Parts(kinds=("text",), neutral={"prompt_cache_breakpoint": ()})
_ITEM_PARTS = _Parts(
    kinds=("input_text", "output_text", "text"),
    neutral={"annotations": ([],), "prompt_cache_breakpoint": ()},
    echoed=frozenset({"logprobs"}),
)


def _role(value: object) -> object:
    if value in ("tool", "function"):
        raise fault("unsupported_parameter", f"can't be {value!r}: there are no tools here")
    return value


ChatText = Annotated[str, BeforeValidator(_CHAT_PARTS.join)]
"""Content of a chat message: a string or `text` parts."""

ItemText = Annotated[str, BeforeValidator(_ITEM_PARTS.join)]
"""Content of an item: a string or `input_text`, `output_text` or `text` parts."""

Role = Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_role)]
"""Who speaks."""


def template_role(role: str) -> str:
    """Return the role as chat templates know it: a developer's message is a system message."""
    return "system" if role == "developer" else role
