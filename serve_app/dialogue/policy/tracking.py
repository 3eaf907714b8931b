"""How a turn changes the state: intent, slots, mood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b

from serve_app.dialogue.nlu.understanding import Entity, Understanding
from serve_app.dialogue.personas.schema import Persona
from serve_app.dialogue.policy.state import (
    HISTORY,
    DialogueState,
    FilledSlot,
    IntentRecord,
    TurnMood,
)

__all__ = ["track"]

_MOOD_MEMORY = 0.6
# An answer that fills the slot asked for changes the subject only if it clearly has another.
_CHANGES_SUBJECT = 0.75


def track(state: DialogueState, understanding: Understanding, persona: Persona) -> DialogueState:
    """Return the state with a user's turn in it.

    Args:
        state: before the turn.
        understanding: of the turn.
        persona: whose intents and slots they are.
    """
    turn = state.turns + 1
    asked_for = state.asking if state.asking in persona.slots else None
    needs = _needs(persona, understanding.intent.name or state.intent)
    # What is empty comes first; what is filled may be corrected.
    needs = sorted(needs, key=lambda name: name in state.slots)
    given = _given(understanding, persona, asked_for, needs)
    answers = asked_for is not None and asked_for in given
    intent, confidence = _intent(state, understanding, answers=answers)
    if intent not in persona.intents:
        intent, confidence = None, 0.0  # the persona's file has changed meanwhile
    slots = {name: slot for name, slot in state.slots.items() if name in persona.slots}
    slots |= {
        name: FilledSlot(value, certainty, turn) for name, (value, certainty) in given.items()
    }
    wanted = tuple(name for name in _needs(persona, intent) if name not in slots)
    sentiment = understanding.sentiment
    words = _words(understanding.text)
    return replace(
        state,
        turns=turn,
        intent=intent,
        confidence=confidence,
        intents=(
            *state.intents,
            IntentRecord(turn, understanding.intent.name, understanding.intent.confidence),
        )[-HISTORY:],
        slots=slots,
        wanted=wanted,
        asking=None,
        asked={name: count for name, count in state.asked.items() if name in wanted},
        language=understanding.language.value,
        mood=_MOOD_MEMORY * state.mood + (1 - _MOOD_MEMORY) * sentiment.score,
        moods=(*state.moods, TurnMood(turn, sentiment.score, understanding.emotion.value))[
            -HISTORY:
        ],
        negative_turns=state.negative_turns + 1 if sentiment.value == "negative" else 0,
        unrecognised_turns=(
            state.unrecognised_turns + 1 if understanding.intent.name is None and not given else 0
        ),
        last_text=words,
        repeated=words == state.last_text,
    )


def _intent(
    state: DialogueState, understanding: Understanding, *, answers: bool
) -> tuple[str | None, float]:
    found = understanding.intent
    if answers and state.intent is not None:
        other = found.name not in (None, state.intent)
        if not (other and found.confidence >= _CHANGES_SUBJECT):
            return state.intent, state.confidence
    if found.name is None:
        # Still about the same while a question is open, whatever was said.
        return (state.intent, state.confidence) if state.asking else (None, 0.0)
    return found.name, found.confidence


def _needs(persona: Persona, intent: str | None) -> list[str]:
    return persona.intents[intent].needs if intent in persona.intents else []


def _given(
    understanding: Understanding, persona: Persona, asked_for: str | None, needs: list[str]
) -> Mapping[str, tuple[str, float]]:
    """Return the slots that the turn fills: the one that was asked for before those needed, in order."""
    open_slots = [name for name in (asked_for, *needs) if name is not None]
    given: dict[str, tuple[str, float]] = {}
    free: list[Entity] = []
    for entity in understanding.entities:
        if entity.slot is None:
            free.append(entity)
        else:
            given[entity.slot] = (entity.value, entity.confidence)
    for name in dict.fromkeys(open_slots):
        slot = persona.slots[name]
        if name in given or slot.pattern is not None or slot.choices:
            continue
        if slot.entity == "text":
            if name == asked_for and understanding.intent.name is None:
                given[name] = (understanding.text.strip(), 1.0)
            continue
        entity_found = next((entity for entity in free if entity.kind == slot.entity), None)
        if entity_found is not None:
            free.remove(entity_found)
            given[name] = (entity_found.value, entity_found.confidence)
    return given


def _words(text: str) -> str:
    plain = " ".join(text.casefold().split()).strip(" .!?")
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
