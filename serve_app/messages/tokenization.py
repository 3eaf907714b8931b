"""Ingress, Dialogue → Tokenizer: text to tokens and back."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ChatEncoding", "Message", "TextEncoding", "TokenizerInfo"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation as the chat template takes it.

    Attributes:
        role: "system", "user" or "assistant".
        content: plain text.
        name: who speaks, if the client said so.
    """

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChatEncoding:
    """A rendered and encoded conversation.

    Attributes:
        tokens: ids of the whole prompt, the generation prompt included.
        message_tokens: tokens each message accounts for, aligned with the messages; together with
            `overhead` they sum to `len(tokens)` or slightly more (merges across borders).
        overhead: tokens that belong to no message (BOS, generation prompt).
        encode_s: seconds that it took.
    """

    tokens: tuple[int, ...]
    message_tokens: tuple[int, ...]
    overhead: int
    encode_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """An encoded text.

    Attributes:
        tokens: its ids.
        encode_s: seconds that it took.
    """

    tokens: tuple[int, ...]
    encode_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What callers need to know about a served model without loading it.

    Attributes:
        model: served name.
        vocab_size: number of token ids.
        context_length: most tokens in one sequence, prompt and output together.
        eos_token_ids: tokens that end a turn.
        created: Unix seconds at which the model was prepared.
    """

    model: str
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    created: int
