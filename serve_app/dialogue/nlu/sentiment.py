"""Whether a turn is meant well: VADER for English, lexicons of our own for German and Chinese.

Source: Hutto and Gilbert 2014, whose lexicon, rules and thresholds the English part is. The others
count words, turn negated ones round, and use VADER's normalisation.
"""

from __future__ import annotations

import math
import re

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from serve_app.dialogue.nlu.lexicon import Lexicon, LexiconHit, lexicon_named
from serve_app.dialogue.nlu.understanding import Label, Sentiment, Span

__all__ = ["LANGUAGES", "SentimentAnalyzer"]

LANGUAGES = ("en", "de", "zh")
"""Languages whose sentiment is found; in others every turn is neutral, with confidence 0."""

# Wishing is not liking.
_WISH = re.compile(r"\b((?:I|we|you)(?:['’]d| would)|would you)( like\b)", re.IGNORECASE)

_THRESHOLD = 0.05
# What an emotion says of the sentiment where no word does.
_BY_EMOTION = {"anger": -0.5, "fear": -0.5, "sadness": -0.5, "joy": 0.5}
_NEGATED = -0.74
_NORMAL = 15.0


class SentimentAnalyzer:
    """Finds sentiments."""

    def __init__(self) -> None:
        self._vader = SentimentIntensityAnalyzer()
        service = lexicon_named("sentiment_en")
        self._vader.lexicon.update(service.single_words())
        self._words = {code: lexicon_named(f"sentiment_{code}") for code in LANGUAGES}

    def analyze(self, text: str, language: str, emotion: Label) -> Label:
        """Return the sentiment of a text.

        The confidence grows with the distance from the threshold; it is no probability.

        Args:
            text: the turn.
            language: ISO 639-1 code.
            emotion: that the turn shows; it counts where no word has a sentiment.
        """
        if language not in LANGUAGES:
            return Label("neutral", 0.0, Span(0, len(text)))
        if language == "en":
            meant = _WISH.sub(r"\1 want", text)
            score = float(self._vader.polarity_scores(meant)["compound"])
            found = _label(score, Span(0, len(text)))
        else:
            found = _by_words(text, self._words[language])
        if found.value == "neutral" and emotion.value in _BY_EMOTION:
            return _label(_BY_EMOTION[emotion.value] * emotion.confidence, emotion.span)
        return found


def _by_words(text: str, lexicon: Lexicon) -> Label:
    hits = list(lexicon.find(text))
    total = sum(map(_valence, hits))
    score = total / math.sqrt(total * total + _NORMAL)
    strongest = max(hits, key=lambda hit: abs(_valence(hit)), default=None)
    return _label(score, strongest.span if strongest else Span(0, len(text)))


def _valence(hit: LexiconHit) -> float:
    return float(hit.values[0]) * (_NEGATED if hit.negated else 1)


def _label(score: float, span: Span) -> Label:
    value: Sentiment = "neutral"
    if abs(score) >= _THRESHOLD:
        value = "positive" if score > 0 else "negative"
    confidence = 1 - abs(score) / _THRESHOLD / 2 if value == "neutral" else 0.5 + abs(score) / 2
    return Label(value, confidence, span, score)
