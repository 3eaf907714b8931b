"""All entities of a text, none over another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date

from serve_app.dialogue.nlu.amounts import find_amounts
from serve_app.dialogue.nlu.choices import ChoiceFinder
from serve_app.dialogue.nlu.codes import find_codes, find_numbers, find_patterns
from serve_app.dialogue.nlu.contacts import find_emails, find_phones
from serve_app.dialogue.nlu.dates import find_dates
from serve_app.dialogue.nlu.understanding import Entity

__all__ = ["EntityFinder"]

_MONTH_FIRST = frozenset({"US", "PH", "PR", "GU", "FM", "MH", "PW"})
_WEAK = 0.75
# Where two want the same characters; a weak one yields to any that is sure of itself.
_PRECEDENCE = ("email", "date", "amount", "phone", "code", "choice", "number")


class EntityFinder:
    """Finds entities.

    Args:
        region: ISO 3166 code of the country whose phone numbers and order of day and month are meant.
        patterns: regular expressions of codes, by slot.
        choices: further words by value, by slot.
    """

    def __init__(
        self,
        region: str,
        patterns: Mapping[str, str] | None = None,
        choices: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ) -> None:
        self._region = region
        self._patterns = {
            slot: re.compile(rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])", re.IGNORECASE)
            for slot, pattern in (patterns or {}).items()
        }
        self._choices = ChoiceFinder(choices or {})

    def find(self, text: str, today: date) -> tuple[Entity, ...]:
        """Return the entities in the text's order.

        Args:
            text: the turn.
            today: what relative dates count from.
        """
        day_first = self._region not in _MONTH_FIRST
        found = [
            *find_patterns(text, self._patterns),
            *find_emails(text),
            *find_dates(text, today, day_first=day_first),
            *find_amounts(text),
            *find_phones(text, self._region),
            *find_codes(text),
            *self._choices.find(text),
            *find_numbers(text),
        ]
        found.sort(key=_rank)
        kept: list[Entity] = []
        for entity in found:
            if not any(entity.span.overlaps(other.span) for other in kept):
                kept.append(entity)
        return tuple(sorted(kept, key=lambda entity: entity.span.start))


def _rank(entity: Entity) -> tuple[bool, bool, bool, int, int]:
    length = entity.span.end - entity.span.start
    return (
        entity.slot is None,
        entity.kind == "number",  # what has a number in it is more than a number
        entity.confidence < _WEAK,
        _PRECEDENCE.index(entity.kind),
        -length,
    )
