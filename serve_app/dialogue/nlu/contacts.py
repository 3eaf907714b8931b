"""E-mail addresses and phone numbers in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers

from serve_app.dialogue.nlu.understanding import Entity, Span

__all__ = ["find_emails", "find_phones"]

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_FEWEST_DIGITS = 7
_MOST_TRIES = 20


def find_emails(text: str) -> Iterator[Entity]:
    """Find e-mail addresses; the value is in lower case."""
    for match in _EMAIL.finditer(text):
        yield Entity("email", match.group(), match.group().lower(), 0.99, Span(*match.span()))


def find_phones(text: str, region: str) -> Iterator[Entity]:
    """Find phone numbers that exist in their country's plan; the value is E.164.

    Args:
        text: what to search.
        region: ISO 3166 code of the country of numbers without one.
    """
    if sum(map(str.isdecimal, text)) < _FEWEST_DIGITS:
        return
    matcher = phonenumbers.PhoneNumberMatcher(text, region, max_tries=_MOST_TRIES)
    for match in matcher:
        value = phonenumbers.format_number(match.number, phonenumbers.PhoneNumberFormat.E164)
        # A run of digits without signs or country may be any other number.
        confidence = 0.7 if match.raw_string.isdecimal() else 0.97
        yield Entity("phone", match.raw_string, value, confidence, Span(match.start, match.end))
