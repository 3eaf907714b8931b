"""A conversation with a persona of which only understanding and decisions take place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.nlu.understanding import Label, Understanding
from serve_app.dialogue.personas.schema import Persona, text_in
from serve_app.dialogue.personas.understanding import understander_of
from serve_app.dialogue.policy.decision import Decision, take_turn
from serve_app.dialogue.policy.state import DialogueState

__all__ = ["Rehearsal", "RehearsedTurn"]

_MOST_INTENTS = 3


@dataclass(frozen=True, slots=True)
class RehearsedTurn:
    """A turn of a rehearsal.

    Attributes:
        understanding: what was understood.
        decision: what would be done.
        state: the conversation's after it.
    """

    understanding: Understanding
    decision: Decision
    state: DialogueState

    def lines(self) -> Iterator[str]:
        """Yield the turn in words, a line for each thing."""
        found, decision = self.understanding, self.decision
        yield f"language   {_label(found.language, found.text)}"
        yield f"sentiment  {_label(found.sentiment, found.text)}, score {found.sentiment.score:+.2f}"
        yield f"emotion    {_label(found.emotion, found.text)}"
        ranked = ", ".join(
            f"{name} {share:.2f}" for name, share in found.intent.ranking[:_MOST_INTENTS]
        )
        yield f"intent     {found.intent.name or 'none'}" + (f" ({ranked})" if ranked else "")
        for entity in found.entities:
            slot = f" for {entity.slot}" if entity.slot else ""
            yield (
                f"entity     {entity.kind} {entity.text!r} = {entity.value} "
                f"({entity.confidence:.2f}){slot}"
            )
        if self.state.slots:
            known = ", ".join(f"{name} = {slot.value}" for name, slot in self.state.slots.items())
            yield f"slots      {known}"
        yield f"mood       {self.state.mood:+.2f}"
        yield f"action     {decision.action}, by rule {decision.rule}. {decision.reason}"
        if decision.text is not None:
            yield f"says       {decision.text}"
        if decision.instruction is not None:
            yield f"is told    {decision.instruction}"

    def to_json(self) -> dict[str, Any]:
        """Return the turn as plain values."""
        return {
            "understanding": dataclasses.asdict(self.understanding),
            "decision": dataclasses.asdict(self.decision),
            "state": self.state.to_json(),
        }


class Rehearsal:
    """A conversation without a model.

    Args:
        persona: with whom.
        store: where its fitted intents are kept.
        today: what relative dates count from.
    """

    def __init__(
        self, persona: Persona, store: IntentStore, today: Callable[[], date] = date.today
    ) -> None:
        self._persona = persona
        self._understander = understander_of(persona, store)
        self._today = today
        self._state = DialogueState()

    @property
    def greeting(self) -> str | None:
        """What the persona says first."""
        greeting = self._persona.greeting
        return None if greeting is None else text_in(greeting, self._persona.language)

    def say(self, text: str) -> RehearsedTurn:
        """Take a turn of the user."""
        today = self._today()
        understanding = self._understander.understand(
            text, today=today, expected_language=self._state.language or self._persona.language
        )
        decision, self._state = take_turn(self._state, understanding, self._persona, today=today)
        return RehearsedTurn(understanding, decision, self._state)


def _label(label: Label, text: str) -> str:
    cue = text[label.span.start : label.span.end]
    shown = f" on {cue!r}" if len(cue) < len(text) else ""
    return f"{label.value} ({label.confidence:.2f}){shown}"
