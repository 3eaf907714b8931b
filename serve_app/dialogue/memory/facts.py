"""Facts that users say of themselves in so many words, found by patterns.

Only plain statements in the first person count: what has to be concluded is left alone, since a wrong
fact comes back in every later conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.state.profiles import NewFact

__all__ = ["MOST_CHARACTERS", "find_facts"]

MOST_CHARACTERS = 2000
"""Characters of a turn that are looked at."""

_LONGEST_VALUE = 80
_LONGEST_NOTE = 200


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A way to say a fact.

    Attributes:
        said: matches it; its first group is the value.
        subject: what it is about; with `{}`, the value is part of that.
        text: the fact as a sentence, with the value in braces.
        many: whether the value may be several things, with commas and `and` between.
    """

    said: re.Pattern[str]
    subject: str
    text: str
    many: bool = False


_END = r"(?=\s*(?:[.,;:!?。！？，；]|$)|\s+(?:and|but|because|so|und|aber|weil|since|when|if)\b)"
_VALUE = r"([^.,;:!?\n]{1,80}?)" + _END
_LIST = r"([^.;:!?\n]{1,80}?)(?=\s*(?:[.;:!?]|$)|\s+(?:but|because|so|aber|weil|since|when|if)\b)"
_NAME = r"([A-ZÄÖÜ][\w'’-]*(?: [A-ZÄÖÜ][\w'’-]*){0,3})"
_ZH = r"([^，。！？、,.!?\s]{1,20})"


def _p(said: str, subject: str, text: str, *, many: bool = False) -> _Pattern:
    return _Pattern(re.compile(said), subject, text, many)


# (?i:…) around the words, since names are told by their capitals.
_PATTERNS = (
    _p(rf"\b(?i:my name is|call me|my name's) {_NAME}", "name", "The user's name is {}."),
    _p(rf"\b(?i:I live in|I'm living in|I moved to) {_VALUE}", "home", "The user lives in {}."),
    _p(rf"\b(?i:I am from|I'm from|I come from) {_VALUE}", "origin", "The user is from {}."),
    _p(rf"\b(?i:I work as|my job is) (?:an? )?{_VALUE}", "work", "The user works as {}."),
    _p(rf"\b(?i:I am|I'm) allergic to {_LIST}", "allergy:{}", "The user is allergic to {}.", many=True),
    _p(r"\b(?i:I am|I'm) a? ?(vegetarian|vegan)\b", "diet", "The user is {}."),
    _p(rf"\b(?i:I (?:really )?(?:like|love)) (?!to\b|you\b|it\b|that\b|this\b|how\b)(?:eating )?{_LIST}", "taste:{}", "The user likes {}.", many=True),
    _p(rf"\b(?i:I (?:don't|do not|really don't) like|I (?:hate|dislike|can't stand)) (?!to\b|you\b|it\b|that\b|this\b|how\b){_LIST}", "taste:{}", "The user doesn't like {}.", many=True),
    _p(rf"\b(?i:I prefer) (?!to\b){_VALUE}", "", "The user prefers {}."),
    _p(rf"\b(?i:please remember that|remember that|don't forget that) ([^.!?\n]{{3,{_LONGEST_NOTE}}})", "", "The user asked to remember: {}."),
    _p(rf"\b(?i:ich heiße|ich heisse|mein name ist) {_NAME}", "name", "The user's name is {}."),
    _p(rf"\b(?i:ich wohne in|ich lebe in) {_VALUE}", "home", "The user lives in {}."),
    _p(rf"\b(?i:ich komme aus) {_VALUE}", "origin", "The user is from {}."),
    _p(rf"我(?:的名字)?叫{_ZH}", "name", "The user's name is {}."),
    _p(rf"我住在{_ZH}", "home", "The user lives in {}."),
)  # fmt: skip

_BETWEEN = re.compile(r"\s*,\s*(?:and\s+|und\s+)?|\s+(?:and|und)\s+")


def find_facts(text: str) -> tuple[NewFact, ...]:
    """Return the facts that a user's turn says in so many words, each once.

    Args:
        text: the turn; only its first `MOST_CHARACTERS` are looked at.
    """
    found: dict[str, NewFact] = {}
    for fact in _every(text[:MOST_CHARACTERS]):
        found[fact.subject or fact.text] = fact
    return tuple(found.values())


def _every(text: str) -> Iterator[NewFact]:
    for pattern in _PATTERNS:
        for match in pattern.said.finditer(text):
            if _is_asked(text, match.end()):
                continue
            values = _BETWEEN.split(match[1]) if pattern.many else [match[1]]
            for value in filter(None, (each.strip(" \"'") for each in values)):
                if len(value) > (_LONGEST_VALUE if pattern.subject else _LONGEST_NOTE):
                    continue
                subject = pattern.subject.format(value.casefold())
                yield NewFact(subject, pattern.text.format(value))


def _is_asked(text: str, place: int) -> bool:
    """Whether the sentence around a place is a question, which states nothing."""
    end = re.search(r"[.!?。！？\n]", text[place:])
    return end is not None and end[0] in "?？"
