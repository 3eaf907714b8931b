"""Which emotion a turn shows, by a lexicon of our own."""

from __future__ import annotations

from collections import defaultdict

from serve_app.dialogue.nlu.lexicon import LexiconHit, lexicon_named
from serve_app.dialogue.nlu.understanding import Label, Span

__all__ = ["EmotionDetector"]

_LEAST = 0.35
# A joy that is denied is sadness; any other emotion that is denied is none.
_DENIED = {"joy": "sadness"}
_DENIED_SHARE = 0.6


class EmotionDetector:
    """Finds emotions in English, German and Chinese; in other languages every turn is neutral."""

    def __init__(self) -> None:
        self._lexicon = lexicon_named("emotions")

    def detect(self, text: str) -> Label:
        """Return the emotion that the text's words speak for most.

        Several words for one emotion count as independent evidence. The confidence of `neutral` is
        what the strongest emotion leaves.
        """
        doubt: dict[str, float] = defaultdict(lambda: 1.0)
        cues: dict[str, tuple[float, LexiconHit]] = {}
        for hit in self._lexicon.find(text):
            emotion, strength = hit.values[0], float(hit.values[1])
            if hit.negated:
                if emotion not in _DENIED:
                    continue
                emotion, strength = _DENIED[emotion], strength * _DENIED_SHARE
            doubt[emotion] *= 1 - strength
            if emotion not in cues or strength > cues[emotion][0]:
                cues[emotion] = (strength, hit)
        best = min(doubt, key=lambda emotion: (doubt[emotion], emotion), default=None)
        if best is None or 1 - doubt[best] < _LEAST:
            strongest = 1 - doubt[best] if best else 0.0
            return Label("neutral", 1 - strongest, Span(0, len(text)))
        return Label(best, 1 - doubt[best], cues[best][1].span)
