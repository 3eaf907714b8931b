"""What is known of a conversation beside its words, as a value that is stored as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

__all__ = ["HISTORY", "DialogueState", "FilledSlot", "IntentRecord", "TurnMood"]

HISTORY: Final = 20
"""Turns whose intents and moods are kept."""

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class IntentRecord:
    """What a turn was about.

    Attributes:
        turn: number of the turn, from 1.
        name: the intent, or None where none was recognised.
        confidence: its probability.
    """

    turn: int
    name: str | None
    confidence: float


@dataclass(frozen=True, slots=True)
class FilledSlot:
    """A value that a user gave.

    Attributes:
        value: in one form, see `Entity.value`; a text as it was written.
        confidence: of the entity that it comes from.
        turn: number of the turn that gave it.
    """

    value: str
    confidence: float
    turn: int


@dataclass(frozen=True, slots=True)
class TurnMood:
    """The mood of a turn.

    Attributes:
        turn: number of the turn.
        score: of its sentiment, from −1 to 1.
        emotion: that it showed.
    """

    turn: int
    score: float
    emotion: str


@dataclass(frozen=True, slots=True)
class DialogueState:
    """A conversation's state after a turn.

    Attributes:
        turns: how many turns the user has had.
        intent: what the conversation is about now, or None; an answer to a question is about what the
            question was for.
        confidence: how certainly.
        intents: of the latest turns, oldest first.
        slots: what has been given, by slot.
        wanted: slots that the intent needs and that are empty, in asking order.
        asking: the slot that the latest reply asked for, or None.
        asked: how often each empty slot has been asked for.
        language: of the latest turn, or None.
        mood: running mean of the turns' sentiment, recent ones counting more; −1 to 1.
        moods: of the latest turns, oldest first.
        negative_turns: how many turns in a row were negative, up to the latest.
        unrecognised_turns: how many turns in a row had no intent and filled no slot.
        last_text: hash of the latest turn's words, to notice a repetition.
        repeated: whether the latest turn said the same as the one before.
        action: of the latest decision, or None.
    """

    turns: int = 0
    intent: str | None = None
    confidence: float = 0.0
    intents: tuple[IntentRecord, ...] = ()
    slots: Mapping[str, FilledSlot] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    asking: str | None = None
    asked: Mapping[str, int] = field(default_factory=dict)
    language: str | None = None
    mood: float = 0.0
    moods: tuple[TurnMood, ...] = ()
    negative_turns: int = 0
    unrecognised_turns: int = 0
    last_text: str = ""
    repeated: bool = False
    action: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain values, with a version."""
        return {"version": _VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DialogueState:
        """Return the state that was stored.

        What a state lacks because it is older has its default. What is not known, because it was
        stored by a later release, is left out: during an update both run, and a state is no more than
        an aid to the next decision. One of another version is a new conversation's for the same reason.
        """
        if stored.get("version") != _VERSION:
            return cls()
        known = _known(cls, stored)
        known |= {
            "intents": tuple(_built(IntentRecord, each) for each in known.get("intents", ())),
            "moods": tuple(_built(TurnMood, each) for each in known.get("moods", ())),
            "slots": {
                name: _built(FilledSlot, each) for name, each in known.get("slots", {}).items()
            },
            "wanted": tuple(known.get("wanted", ())),
        }
        return cls(**known)


_Part = TypeVar("_Part", IntentRecord, FilledSlot, TurnMood)


def _built(kind: type[_Part], stored: Mapping[str, Any]) -> _Part:
    return kind(**_known(kind, stored))


def _known(kind: type[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in dataclasses.fields(kind)}
    return {name: value for name, value in stored.items() if name in names}
