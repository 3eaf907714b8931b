"""Whether a rule's condition holds, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from serve_app.dialogue.nlu.understanding import Understanding
from serve_app.dialogue.personas.schema import Condition
from serve_app.dialogue.policy.checks import CHECKS
from serve_app.dialogue.policy.state import DialogueState

__all__ = ["Situation", "reasons"]


@dataclass(frozen=True, slots=True)
class Situation:
    """What conditions look at.

    Attributes:
        state: with the turn in it.
        understanding: of the turn.
        today: the user's day.
    """

    state: DialogueState
    understanding: Understanding
    today: date


def reasons(condition: Condition, situation: Situation) -> tuple[str, ...] | None:
    """Return why a condition holds, one clause for each thing it names, or None if it doesn't."""
    found = []
    for clause in _clauses(condition, situation):
        if clause is None:
            return None
        found.append(clause)
    return tuple(found)


def _clauses(condition: Condition, situation: Situation) -> Iterator[str | None]:
    """Yield a clause for each thing that a condition names, or None where it isn't so."""
    state, understanding = situation.state, situation.understanding
    if condition.intents or condition.min_confidence is not None:
        yield _intent(condition, situation)
    if condition.unrecognised_turns is not None:
        yield _at_least(state.unrecognised_turns, condition.unrecognised_turns, "not understood")
    if condition.entities:
        kinds = {entity.kind for entity in understanding.entities}
        every = kinds.issuperset(condition.entities)
        yield f"the turn has {', '.join(condition.entities)}" if every else None
    if condition.slots_missing is not None:
        yield _missing(state, wanted=condition.slots_missing)
    if condition.asked is not None:
        yield _asked(state, condition.asked)
    if condition.filled:
        every = state.slots.keys() >= set(condition.filled)
        yield f"{', '.join(condition.filled)} is known" if every else None
    if condition.sentiments:
        value = understanding.sentiment.value
        yield f"the turn is {value}" if value in condition.sentiments else None
    if condition.emotions:
        value = understanding.emotion.value
        yield f"the turn shows {value}" if value in condition.emotions else None
    if condition.negative_turns is not None:
        yield _at_least(state.negative_turns, condition.negative_turns, "negative")
    if condition.mood_below is not None:
        low = state.mood < condition.mood_below
        yield f"the mood is {state.mood:.2f} < {condition.mood_below}" if low else None
    if condition.languages:
        value = understanding.language.value
        yield f"the language is {value}" if value in condition.languages else None
    if condition.languages_other_than:
        value = understanding.language.value
        yield f"the language is {value}" if value not in condition.languages_other_than else None
    if condition.turns is not None:
        enough = state.turns >= condition.turns
        yield f"it is turn {state.turns} ≥ {condition.turns}" if enough else None
    for name in condition.checks:
        yield CHECKS[name].reason(state, understanding, situation.today)


def _intent(condition: Condition, situation: Situation) -> str | None:
    """Say how certain an intent is.

    With `min_confidence`, any of the named intents counts that is likely enough, the likeliest or not: a
    rule for a dangerous one may ask for little. Without it, the turn's intent must be one of them.
    """
    state = situation.state
    shares = dict(situation.understanding.intent.ranking)
    if state.intent is not None:
        shares[state.intent] = max(state.confidence, shares.get(state.intent, 0.0))
    names = condition.intents or ([state.intent] if state.intent else [])
    least = condition.min_confidence
    if least is None:
        name = state.intent
        return f"the intent is {name} ({state.confidence:.2f})" if name in names else None
    best = max(names, key=lambda name: shares.get(name, 0.0), default=None)
    if best is None or shares.get(best, 0.0) < least:
        return None
    return f"the intent is {best} ({shares[best]:.2f} ≥ {least})"


def _at_least(count: int, least: int, what: str) -> str | None:
    turns = "turn was" if count == 1 else "turns in a row were"
    return f"{count} {turns} {what} (≥ {least})" if count >= least else None


def _missing(state: DialogueState, *, wanted: bool) -> str | None:
    if bool(state.wanted) != wanted:
        return None
    if not wanted:
        return "no slot is missing"
    return f"{', '.join(state.wanted)} is missing for {state.intent}"


def _asked(state: DialogueState, least: int) -> str | None:
    if not state.wanted:
        return None
    first = state.wanted[0]
    count = state.asked.get(first, 0)
    return f"{first} was asked for {count} times (≥ {least})" if count >= least else None
