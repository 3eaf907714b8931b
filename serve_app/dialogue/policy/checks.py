"""Conditions that data can't say: one small class each, named in a persona's `checks`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Protocol

from serve_app.dialogue.nlu.understanding import Understanding
from serve_app.dialogue.personas.schema import CheckName
from serve_app.dialogue.policy.state import DialogueState

__all__ = ["CHECKS", "Check", "DateInThePast", "RepeatsItself"]


class Check(Protocol):
    """A condition in code."""

    def reason(self, state: DialogueState, understanding: Understanding, today: date) -> str | None:
        """Return why it holds, in words that end a sentence, or None if it doesn't."""
        ...


class RepeatsItself:
    """The user says the same as in the turn before."""

    def reason(
        self,
        state: DialogueState,
        understanding: Understanding,  # noqa: ARG002 - the protocol's
        today: date,  # noqa: ARG002
    ) -> str | None:
        """See `Check.reason`."""
        return "the turn says the same as the one before" if state.repeated else None


class DateInThePast:
    """The turn names a day that is over."""

    def reason(
        self,
        state: DialogueState,  # noqa: ARG002 - the protocol's
        understanding: Understanding,
        today: date,
    ) -> str | None:
        """See `Check.reason`."""
        for entity in understanding.entities:
            is_day = entity.kind == "date" and entity.value.count("-") == 2
            if is_day and date.fromisoformat(entity.value) < today:
                return f"{entity.text!r} is in the past"
        return None


CHECKS: Mapping[CheckName, Check] = {
    "date_in_the_past": DateInThePast(),
    "repeats_itself": RepeatsItself(),
}
"""Every check by its name in persona files."""
