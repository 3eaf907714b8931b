"""How turns are planned, tokenized and kept as responses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from serve_app.settings.section import Positive, Seconds, Section

__all__ = ["DialogueSettings", "ResponsesSettings", "TokenizerSettings"]


class DialogueSettings(Section):
    """How turns are planned."""

    persona: str = Field(
        "You are a helpful AI assistant.",
        description="system prompt of conversations that bring none of their own; never dropped",
    )
    personas: Path | None = Field(
        None, description="folder of persona files; null takes the ones that ship"
    )
    default_persona: str | None = Field(
        None, description="name of the persona of conversations that name none; null: no persona"
    )
    summaries: bool = Field(
        default=True,
        description="summarise turns that left the prompt, where the persona says so too",
    )
    recalled_turns: int = Field(
        3,
        ge=0,
        description="most turns that left a persona's prompt and are quoted in it where the newest turn "
        "is about them; 0 quotes none",
    )
    summary_tokens: Positive = Field(96, description="longest summary")
    profiles: bool = Field(
        default=True,
        description="keep facts that users say of themselves, where the persona says so too",
    )
    profile_ttl_s: Positive = Field(
        365 * 86400, description="a profile to which nothing is added for this long is forgotten"
    )
    profile_facts: Positive = Field(64, description="most facts of one profile; the oldest leave")
    memory_share: float = Field(
        0.25,
        ge=0,
        le=0.5,
        description="most of the context that profile, summary and recalled turns take together",
    )
    reply_tokens: Positive = Field(
        512, description="room kept for the reply when a request names no max_tokens"
    )
    truncate_stride: int = Field(
        256,
        ge=0,
        description="oldest turns leave the prompt in strides of about this many tokens, so that its "
        "cached beginning serves several turns; 0 lets as few leave as possible",
    )
    conversation_ttl_s: Positive = Field(
        30 * 86400, description="a conversation nobody touches for this long is forgotten"
    )
    max_items: Positive = Field(10_000, description="most items kept of one conversation")


class ResponsesSettings(Section):
    """How responses are stored, and what happens when two meet in one conversation."""

    store: bool = Field(
        default=True,
        description="keep the responses to requests that don't say; `store` in one decides",
    )
    on_busy: Literal["enqueue", "reject", "interrupt"] = Field(
        "enqueue",
        description="what a turn does while another one of its conversation runs; `on_busy` in a "
        "request decides",
    )
    max_queued_turns: Positive = Field(
        16, description="most turns of one conversation that run or wait"
    )
    journal_interval_s: float = Field(
        0.2,
        gt=0,
        le=1,
        description="how often what running responses have said is written to their journals",
    )
    journal_ttl_s: Positive = Field(
        600, description="time that the journal of a response nobody finishes is kept"
    )
    journal_entries: Positive = Field(
        20_000, description="most entries of a journal, each of them one interval's events"
    )
    lease_s: Seconds = Field(
        15.0, description="a response whose replica is silent for this long is lost"
    )
    idempotency_ttl_s: Positive = Field(
        86400, description="time that an Idempotency-Key stands for its first request"
    )


class TokenizerSettings(Section):
    """The tokenizer deployment."""

    cache_entries: int = Field(4096, ge=0, description="encoded messages kept for reuse")
