"""What is understood of a turn. Every result has a confidence and the part of the text it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "EMOTIONS",
    "SENTIMENTS",
    "Emotion",
    "Entity",
    "EntityKind",
    "Intent",
    "Label",
    "Sentiment",
    "Span",
    "Understanding",
]

Sentiment: TypeAlias = Literal["negative", "neutral", "positive"]
Emotion: TypeAlias = Literal["anger", "fear", "joy", "sadness", "surprise", "neutral"]
EntityKind: TypeAlias = Literal["amount", "choice", "code", "date", "email", "number", "phone"]

SENTIMENTS: tuple[Sentiment, ...] = ("negative", "neutral", "positive")
EMOTIONS: tuple[Emotion, ...] = ("anger", "fear", "joy", "sadness", "surprise", "neutral")


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text.

    Attributes:
        start: place of its first character.
        end: place behind its last one.
    """

    start: int
    end: int

    def overlaps(self, other: Span) -> bool:
        """Whether both have a character in common."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True)
class Label:
    """One of a fixed set of values.

    Attributes:
        value: which.
        confidence: from 0 to 1.
        span: what it rests on; the whole turn where nothing less does.
        score: for a sentiment, from −1 (bad) to 1 (good); 0 elsewhere.
    """

    value: str
    confidence: float
    span: Span
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Intent:
    """What the user wants.

    Attributes:
        name: the persona's intent, or None where none is likely enough.
        confidence: probability of the likeliest intent, also where that is too little.
        span: what it rests on.
        ranking: (intent, probability) of all, likeliest first.
    """

    name: str | None
    confidence: float
    span: Span
    ranking: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Entity:
    """Something in the text that has a value.

    Attributes:
        kind: what it is.
        text: as it was written.
        value: in one form, whoever wrote it: ISO 8601 for dates (`2026-03-09`, `2026-W11`,
            `2026-03`), `12.50 EUR`, E.164 for phone numbers, lower case for e-mail, upper case for
            codes, the choice's name.
        confidence: from 0 to 1.
        span: where it stands.
        slot: the persona's slot whose pattern or choices it matched, or None.
    """

    kind: EntityKind
    text: str
    value: str
    confidence: float
    span: Span
    slot: str | None = None


@dataclass(frozen=True, slots=True)
class Understanding:
    """All that is understood of a turn.

    Attributes:
        text: what was looked at; a long turn's beginning.
        language: ISO 639-1 code.
        sentiment: one of `SENTIMENTS`, with its score.
        emotion: one of `EMOTIONS`.
        intent: what the user wants.
        entities: in the text's order, without overlaps.
    """

    text: str
    language: Label
    sentiment: Label
    emotion: Label
    intent: Intent
    entities: tuple[Entity, ...] = ()
