"""How people talk: how often, how long, how patiently."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import ConfigError

__all__ = ["PERSONAS", "Persona", "chosen_personas"]


@dataclass(frozen=True, slots=True)
class Persona:
    """One kind of talk.

    Attributes:
        name: what its statistics are called by.
        turns: questions in a conversation.
        think_s: seconds between a reply and the next question, on average.
        prompt_tokens: tokens of a question, about.
        output_tokens: most tokens of a reply.
        cancels: share of replies that are hung up on after their first words.
        reconnects: share of questions that come over a new connection.
    """

    name: str
    turns: int
    think_s: float
    prompt_tokens: int
    output_tokens: int
    cancels: float = 0.0
    reconnects: float = 0.0


PERSONAS = {
    persona.name: persona
    for persona in (
        # Reads the reply and answers it.
        Persona("talker", turns=4, think_s=6.0, prompt_tokens=40, output_tokens=64),
        # Brings a page of text and asks about it.
        Persona("reader", turns=2, think_s=15.0, prompt_tokens=400, output_tokens=96),
        # Hangs up on every other reply and asks anew.
        Persona(
            "impatient", turns=3, think_s=1.0, prompt_tokens=30, output_tokens=128, cancels=0.5
        ),
        # Loses the connection between turns, as on a train.
        Persona(
            "commuter", turns=4, think_s=4.0, prompt_tokens=40, output_tokens=64, reconnects=1.0
        ),
    )
}


def chosen_personas(names: str) -> list[Persona]:
    """Return the personas that a list with commas names.

    Raises:
        ConfigError: one of them is unknown.
    """
    chosen = []
    for name in names.split(","):
        persona = PERSONAS.get(name.strip())
        if persona is None:
            msg = f"Nobody is called {name.strip()!r}; choose among {', '.join(PERSONAS)}."
            raise ConfigError(msg)
        chosen.append(persona)
    return chosen
