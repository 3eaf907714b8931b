"""What a persona makes of a turn: understood, taken into the state, decided, and explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from serve_app.dialogue.nlu.understanding import Label, Understanding
from serve_app.dialogue.personas.running import RunningPersona
from serve_app.dialogue.personas.schema import Persona
from serve_app.dialogue.policy.decision import NO_RULE, Decision, take_turn
from serve_app.dialogue.policy.state import DialogueState
from serve_app.errors import InvalidRequest
from serve_app.messages.tokenization import Message
from serve_app.telemetry import ledger

__all__ = ["Conduct", "check_limits", "conduct_turn"]

_NOTHING_SAID = Decision("answer", NO_RULE, "No user says anything in this turn.")


@dataclass(frozen=True, slots=True)
class Conduct:
    """What a persona makes of a turn.

    Attributes:
        persona: whose it is.
        decision: what is done.
        state: the conversation's behind the turn.
        understanding: of the turn, or None where no user says anything in it.
    """

    persona: Persona
    decision: Decision
    state: DialogueState
    understanding: Understanding | None

    def explained(self) -> dict[str, Any]:
        """Return what was understood and decided, and why, as plain values."""
        decision, found = self.decision, self.understanding
        told: dict[str, Any] = {
            "persona": self.persona.name,
            "action": decision.action,
            "rule": decision.rule,
            "reason": decision.reason,
            "answered_by": "model" if decision.text is None else "template",
            "template": decision.template,
            "slots": {name: slot.value for name, slot in self.state.slots.items()},
            "mood": round(self.state.mood, 3),
        }
        if found is not None:
            told |= {
                "intent": {
                    "name": found.intent.name,
                    "confidence": round(found.intent.confidence, 3),
                },
                "entities": [
                    {
                        "kind": entity.kind,
                        "text": entity.text,
                        "value": entity.value,
                        "confidence": round(entity.confidence, 3),
                        "slot": entity.slot,
                    }
                    for entity in found.entities
                ],
                "language": _told(found.language),
                "sentiment": _told(found.sentiment),
                "emotion": _told(found.emotion),
            }
        return told

    @property
    def note(self) -> str:
        """What the model is told for this turn: the rule's instruction, and what the emotion asks for."""
        said = [self.decision.instruction or ""]
        shaping = self.persona.shaping
        if shaping.emotion and self.understanding is not None:
            emotion: Any = self.understanding.emotion.value
            said.append(shaping.guidance.get(emotion, ""))
        return "\n".join(part for part in said if part)


def conduct_turn(
    running: RunningPersona,
    stored: Mapping[str, Any] | None,
    messages: Sequence[Message],
    *,
    today: date,
) -> Conduct:
    """Understand a turn and decide. Computes for a millisecond or two.

    Args:
        running: who answers.
        stored: the conversation's state before the turn, as it was stored, or None.
        messages: the turn's; the last one of a user counts.
        today: the user's day.

    Raises:
        InvalidRequest: the persona's limits don't allow the turn.
    """
    persona = running.persona
    state = DialogueState() if stored is None else DialogueState.from_json(stored)
    said = [message.content for message in messages if message.role == "user"]
    check_limits(persona, state, said)
    if not said:
        return Conduct(persona, _NOTHING_SAID, state, None)
    with ledger.stage("understand"):
        understanding = running.understander.understand(
            said[-1], today=today, expected_language=state.language or persona.language
        )
    with ledger.stage("decide"):
        decision, after = take_turn(state, understanding, persona, today=today)
    return Conduct(persona, decision, after, understanding)


def check_limits(persona: Persona, state: DialogueState, said: Sequence[str]) -> None:
    """Refuse a turn that is longer, or one more, than the persona takes.

    Raises:
        InvalidRequest: it is.
    """
    limits = persona.limits
    longest = max(map(len, said), default=0)
    if longest > limits.max_input_chars:
        msg = (
            f"The persona {persona.name!r} takes turns of at most {limits.max_input_chars} "
            f"characters; this one has {longest}. Send less text."
        )
        raise InvalidRequest(msg, param="input", code="invalid_value")
    if limits.max_turns is not None and said and state.turns >= limits.max_turns:
        msg = (
            f"The persona {persona.name!r} takes at most {limits.max_turns} turns in one "
            "conversation, and this one has had them. Start another."
        )
        raise InvalidRequest(msg, param="conversation", code="turn_limit_reached")


def _told(label: Label) -> dict[str, Any]:
    return {"value": label.value, "confidence": round(label.confidence, 3)}
