"""How well a persona's intents are told apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.dialogue.nlu.intent_model import OUT_OF_SCOPE, IntentModel, cross_validate
from serve_app.dialogue.nlu.scores import Score, score_labels
from serve_app.dialogue.personas.schema import Persona
from serve_app.dialogue.personas.understanding import intent_examples

__all__ = ["IntentAccuracy", "Mistake", "cross_validated", "held_out", "training"]

_Ranking = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """A sentence that was taken for another intent than its own; "" is none.

    Attributes:
        sentence: the sentence.
        expected: its intent.
        found: what it was taken for.
        confidence: how certainly.
    """

    sentence: str
    expected: str
    found: str
    confidence: float


@dataclass(frozen=True, slots=True)
class IntentAccuracy:
    """What came of a part of a persona's sentences.

    Attributes:
        score: of the likeliest intent, whatever its probability.
        recognised: share of the intents' sentences in which some intent is above the threshold.
        right_of_recognised: share of all sentences with one that have the right one; 0 without any.
        mistakes: what was wrong, the most certain first.
    """

    score: Score
    recognised: float
    right_of_recognised: float
    mistakes: tuple[Mistake, ...]


def training(persona: Persona, model: IntentModel) -> IntentAccuracy:
    """Measure on the persona's examples, which the model was fitted on."""
    return _measured(
        persona,
        (
            (text, name, model.probabilities(text))
            for name, texts in _own_examples(persona).items()
            for text in texts
        ),
    )


def cross_validated(persona: Persona) -> IntentAccuracy:
    """Measure on each of the persona's examples by a model that hasn't seen it."""
    found = cross_validate(intent_examples(persona))
    own = _own_examples(persona)
    return _measured(
        persona,
        (
            (text, name, ranking)
            for text, name, ranking in zip(
                found.sentences, found.expected, found.ranked, strict=True
            )
            if text in own.get(name, ())
        ),
    )


def held_out(persona: Persona, model: IntentModel) -> IntentAccuracy | None:
    """Measure on the sentences that are held out, or return None where there are none."""
    if not any(intent.held_out for intent in persona.intents.values()):
        return None
    return _measured(
        persona,
        (
            (text, name, model.probabilities(text))
            for name, intent in persona.intents.items()
            for text in intent.held_out
        ),
    )


def _own_examples(persona: Persona) -> dict[str, list[str]]:
    examples = {name: intent.examples for name, intent in persona.intents.items()}
    return {**examples, OUT_OF_SCOPE: persona.understanding.out_of_scope}


def _measured(persona: Persona, ranked: Iterable[tuple[str, str, _Ranking]]) -> IntentAccuracy:
    expected, found, mistakes = [], [], []
    recognised = right = strangers = 0
    for text, name, ranking in ranked:
        best, confidence = ranking[0]
        expected.append(name)
        found.append(best)
        if best != name:
            mistakes.append(Mistake(text, name, best, confidence))
        if best != OUT_OF_SCOPE and confidence >= persona.understanding.threshold:
            recognised += name != OUT_OF_SCOPE
            strangers += name == OUT_OF_SCOPE
            right += best == name
    return IntentAccuracy(
        score_labels(expected, found),
        recognised / sum(name != OUT_OF_SCOPE for name in expected),
        right / (recognised + strangers) if recognised + strangers else 0.0,
        tuple(sorted(mistakes, key=lambda mistake: -mistake.confidence)),
    )
