"""Which of the turns that left the prompt have most to do with the new one, by the words they share."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from serve_app.messages.tokenization import Message

__all__ = ["recalled"]

_WORD = re.compile(r"[^\W_]+")
_SHORTEST = 4  # shorter words are mostly about grammar
_LEAST_SHARED = 2
_WORDS_QUOTED = 400


def recalled(turns: Sequence[Sequence[Message]], text: str, *, most: int) -> tuple[str, ...]:
    """Return turns as quotes, those with most in common with a text first.

    A word counts for the more, the fewer of the turns have it; a turn must share two words, or one that
    no other turn has.

    Args:
        turns: what left the prompt, oldest first.
        text: what the user says now.
        most: most turns to return.
    """
    asked = _words(text)
    if not asked or not turns:
        return ()
    words = [_words(" ".join(message.content for message in turn)) for turn in turns]
    spread = Counter(word for each in words for word in each)
    scored = []
    for place, each in enumerate(words):
        shared = asked & each
        if len(shared) < _LEAST_SHARED and not any(spread[word] == 1 for word in shared):
            continue
        score = sum(math.log(1 + len(turns) / spread[word]) for word in shared)
        scored.append((score, place))
    best = sorted(scored, reverse=True)[:most]
    return tuple(_quoted(turns[place]) for _, place in best)


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.casefold()) if len(word) >= _SHORTEST}


def _quoted(turn: Sequence[Message]) -> str:
    names = {"user": "The user said", "assistant": "You said"}
    return " ".join(
        f'{names[message.role]}: "{message.content[:_WORDS_QUOTED]}"'
        for message in turn
        if message.role in names
    )
