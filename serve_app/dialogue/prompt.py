"""How a persona's prompt is put together, and in which order its tokens are spent.

The persona, the conversation's own system messages, what the request and the rule say, and the newest
turn are always there. Of what remains, `dialogue.memory_share` of the context goes first to the facts of
the profile, then to the summary, then to recalled turns, each as far as it fits; all that is left is the
window's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.messages.tokenization import Message

__all__ = ["Draft", "Remembered", "spend"]

_FACTS = "What you know of the user:"
_SUMMARY = "Earlier in this conversation:"
_RECALLED = "From earlier in this conversation:"


@dataclass(frozen=True, slots=True)
class Remembered:
    """What goes into a prompt beside what is said word for word.

    Attributes:
        facts: sentences about the user.
        summary: of turns that left the prompt, or None.
        recalled: quotes of turns that left the prompt.
    """

    facts: tuple[str, ...] = ()
    summary: str | None = None
    recalled: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part, in the order in which tokens are spent."""
        return (*self.facts, *([self.summary] if self.summary else ()), *self.recalled)

    def only(self, kept: frozenset[str]) -> Remembered:
        """Return what is among the parts given."""
        return Remembered(
            tuple(fact for fact in self.facts if fact in kept),
            self.summary if self.summary in kept else None,
            tuple(quote for quote in self.recalled if quote in kept),
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """A prompt in the making.

    Attributes:
        front: what the system says first: persona, own system messages, instructions.
        body: everything behind it, the newest turn last.
        remembered: what is remembered.
        note: what the model is told for this turn only.
        strict: for templates that take a system message only at the beginning, and a user's after it:
            the note stands in front, and a greeting is left out. Else the note stands before the newest
            message, so that what was cached before it serves again.
    """

    front: str
    body: tuple[Message, ...]
    remembered: Remembered = Remembered()
    note: str = ""
    strict: bool = False

    def messages(self) -> tuple[Message, ...]:
        """Return the prompt's messages; the first one is the system's and must stay."""
        known = self.remembered
        front = [self.front]
        if known.facts:
            front.append("\n".join([_FACTS, *(f"- {fact}" for fact in known.facts)]))
        if known.summary:
            front.append(f"{_SUMMARY} {known.summary}")
        turn = [self.note] if self.note else []
        if known.recalled:
            turn.insert(0, "\n".join([_RECALLED, *(f"- {quote}" for quote in known.recalled)]))
        said = "\n\n".join(turn)
        if said and self.strict:
            front.append(said)
        first = Message("system", "\n\n".join(front))
        if not said or self.strict:
            return (first, *self.body)
        return (first, *self.body[:-1], Message("system", said), *self.body[-1:])

    @property
    def needs_leniency(self) -> bool:
        """Whether a strict template could refuse it."""
        _, *others = self.messages()
        return any(each.role == "system" for each in others) or bool(
            others and others[0].role == "assistant"
        )

    def made_strict(self) -> Draft:
        """Return the draft for strict templates."""
        first = next((i for i, each in enumerate(self.body) if each.role != "assistant"), 0)
        return replace(self, strict=True, body=self.body[first:])


def spend(parts: Sequence[str], costs: Sequence[int], room: int) -> frozenset[str]:
    """Return the parts that there is room for, in their order; one that is too long makes way.

    Args:
        parts: in the order in which tokens are spent.
        costs: tokens of each.
        room: tokens that there are.
    """
    kept = set()
    for part, cost in zip(parts, costs, strict=True):
        if cost <= room:
            kept.add(part)
            room -= cost
    return frozenset(kept)
