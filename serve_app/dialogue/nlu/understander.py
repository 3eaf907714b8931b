"""A turn, understood."""

from __future__ import annotations

from datetime import date

from serve_app.dialogue.nlu.emotion import EmotionDetector
from serve_app.dialogue.nlu.entities import EntityFinder
from serve_app.dialogue.nlu.intent_model import OUT_OF_SCOPE, IntentModel
from serve_app.dialogue.nlu.language import LanguageDetector
from serve_app.dialogue.nlu.sentiment import SentimentAnalyzer
from serve_app.dialogue.nlu.understanding import Intent, Span, Understanding

__all__ = ["MOST_CHARACTERS", "Understander"]

MOST_CHARACTERS = 2000
"""Characters of a turn that are looked at, so that a long one takes no longer."""


class Understander:
    """Understands turns. It keeps no state, and several threads may use it.

    Args:
        languages: finds the language.
        entities: finds entities.
        intents: the fitted model, or None for a persona without intents.
        threshold: least probability of an intent.
    """

    def __init__(
        self,
        languages: LanguageDetector,
        entities: EntityFinder,
        intents: IntentModel | None,
        *,
        threshold: float,
    ) -> None:
        self._languages = languages
        self._entities = entities
        self._intents = intents
        self._threshold = threshold
        self._sentiments = SentimentAnalyzer()
        self._emotions = EmotionDetector()

    def understand(
        self, text: str, *, today: date, expected_language: str | None = None
    ) -> Understanding:
        """Understand a turn.

        Args:
            text: what the user wrote; only its first `MOST_CHARACTERS` are looked at.
            today: what relative dates count from, in the user's time zone.
            expected_language: the language of the turn before, or the persona's.
        """
        text = text[:MOST_CHARACTERS]
        language = self._languages.detect(text, expected_language)
        emotion = self._emotions.detect(text)
        return Understanding(
            text=text,
            language=language,
            sentiment=self._sentiments.analyze(text, language.value, emotion),
            emotion=emotion,
            intent=self._intent(text),
            entities=self._entities.find(text, today),
        )

    def _intent(self, text: str) -> Intent:
        span = Span(0, len(text))
        if self._intents is None:
            return Intent(None, 0.0, span)
        every = self._intents.probabilities(text)
        ranking = tuple(each for each in every if each[0] != OUT_OF_SCOPE)
        name, confidence = every[0]
        if name == OUT_OF_SCOPE or confidence < self._threshold:
            return Intent(None, ranking[0][1], span, ranking)
        return Intent(name, confidence, span, ranking)
