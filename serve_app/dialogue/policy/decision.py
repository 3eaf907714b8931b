"""What is done about a turn, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date

from serve_app.dialogue.nlu.understanding import Understanding
from serve_app.dialogue.personas.schema import Action, Persona, Rule, placeholders, text_in
from serve_app.dialogue.policy.conditions import Situation, reasons
from serve_app.dialogue.policy.state import DialogueState, FilledSlot
from serve_app.dialogue.policy.tracking import track

__all__ = ["NO_RULE", "Decision", "decide", "decided", "take_turn"]

NO_RULE = "default"
"""Name of the decision where no rule applies: the model answers."""

_UNKNOWN = "…"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done about a turn.

    Attributes:
        action: what.
        rule: name of the persona's rule that decided, or `NO_RULE`.
        reason: why it applied, as a sentence.
        template: name of the fixed words, or None; the slot's name where the action is `ask`.
        text: the fixed words for this turn, slots filled in, or None where the model writes.
        slot: what is asked for, or None.
        instruction: what the model is told for this turn, or None.
    """

    action: Action
    rule: str
    reason: str
    template: str | None = None
    text: str | None = None
    slot: str | None = None
    instruction: str | None = None


def take_turn(
    state: DialogueState, understanding: Understanding, persona: Persona, *, today: date
) -> tuple[Decision, DialogueState]:
    """Take a user's turn into the state and decide: all that a manager calls per turn.

    Args:
        state: before the turn.
        understanding: of the turn.
        persona: who decides.
        today: the user's day.

    Returns:
        The decision, and the state to store with the turn.
    """
    tracked = track(state, understanding, persona)
    decision = decide(tracked, understanding, persona, today=today)
    return decision, decided(tracked, decision)


def decide(
    state: DialogueState, understanding: Understanding, persona: Persona, *, today: date
) -> Decision:
    """Return what the first rule says whose condition holds. The same input gives the same decision.

    Args:
        state: with the turn in it, see `track`.
        understanding: of the turn.
        persona: whose rules they are.
        today: the user's day.
    """
    situation = Situation(state, understanding, today)
    for rule in persona.policy:
        why = reasons(rule.when, situation)
        if why is not None:
            return _by_rule(rule, why, state, persona)
    return Decision("answer", NO_RULE, "No rule applies, so the model answers.")


def decided(state: DialogueState, decision: Decision) -> DialogueState:
    """Return the state with a decision in it: what was asked for, and how often."""
    asked = dict(state.asked)
    if decision.slot is not None:
        asked[decision.slot] = asked.get(decision.slot, 0) + 1
    return replace(state, asking=decision.slot, asked=asked, action=decision.action)


def _by_rule(rule: Rule, why: tuple[str, ...], state: DialogueState, persona: Persona) -> Decision:
    language = state.language or persona.language
    template, slot, text = rule.template, None, None
    if rule.action == "ask":
        slot = template = state.wanted[0]
        text = _filled(text_in(persona.slots[slot].ask, language), state.slots)
    elif template is not None:
        text = _filled(text_in(persona.templates[template], language), state.slots)
    clauses = "; ".join(why)
    reason = f"{clauses[0].upper()}{clauses[1:]}." if clauses else "It applies to everything else."
    return Decision(rule.action, rule.name, reason, template, text, slot, rule.instruction)


def _filled(text: str, slots: Mapping[str, FilledSlot]) -> str:
    values = dict.fromkeys(placeholders(text), _UNKNOWN)
    return text.format_map(values | {name: slot.value for name, slot in slots.items()})
