"""What a persona says about understanding, made into an `Understander`."""

from __future__ import annotations

from serve_app.dialogue.nlu.background import background_without
from serve_app.dialogue.nlu.entities import EntityFinder
from serve_app.dialogue.nlu.intent_model import OUT_OF_SCOPE
from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.nlu.language import LanguageDetector
from serve_app.dialogue.nlu.understander import Understander
from serve_app.dialogue.personas.schema import Persona

__all__ = ["intent_examples", "understander_of"]


def intent_examples(persona: Persona) -> dict[str, list[str]]:
    """Return what the persona's intent model is fitted on, sentences by class; empty if it has none.

    `OUT_OF_SCOPE` is the persona's own and a background that all share.
    """
    examples = {name: intent.examples for name, intent in persona.intents.items()}
    if examples:
        own = persona.understanding.out_of_scope
        said = [sentence for each in (*examples.values(), own) for sentence in each]
        examples[OUT_OF_SCOPE] = [*own, *background_without(said)]
    return examples


def understander_of(persona: Persona, store: IntentStore) -> Understander:
    """Return what understands a persona's turns.

    Takes a second the first time in a process, and a tenth where intents must be fitted.

    Raises:
        ConfigError: one of its languages is unknown.
        OSError: a new intent model can't be stored.
    """
    settings, examples = persona.understanding, intent_examples(persona)
    slots = persona.slots.items()
    return Understander(
        LanguageDetector(settings.languages),
        EntityFinder(
            settings.region,
            {name: slot.pattern for name, slot in slots if slot.pattern is not None},
            {name: slot.choices for name, slot in slots if slot.choices},
        ),
        store.model(persona.name, examples) if examples else None,
        threshold=settings.threshold,
    )
