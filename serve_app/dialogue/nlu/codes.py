"""Codes as orders, invoices and tickets have them, and plain numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from serve_app.dialogue.nlu.amounts import plain_decimal
from serve_app.dialogue.nlu.numerals import NUMERAL, number_of
from serve_app.dialogue.nlu.understanding import Entity, Span

__all__ = ["find_codes", "find_numbers", "find_patterns"]

_HASHED = re.compile(r"#\s?(?P<code>[A-Za-z0-9][A-Za-z0-9-]{2,23})(?![A-Za-z0-9])")
_LETTERED = re.compile(
    r"(?<![A-Za-z0-9@.-])[A-Za-z]{1,6}[-_]?\d{3,14}(?:[-_/][A-Za-z0-9]{1,10})*(?![A-Za-z0-9@])"
    r"|(?<![A-Za-z0-9@.-])(?=[A-Z0-9-]*[A-Z])(?=[A-Z0-9-]*\d)"
    r"[A-Z0-9]{1,10}(?:-[A-Z0-9]{1,10}){1,5}(?![A-Za-z0-9@-])"
)
_DIGITS = re.compile(r"(?<![\w.,#+/-])\d{5,16}(?![\w/-]|[.,]\d)")
_CONTEXT = re.compile(
    r"(?:order|number|no\.?|nr\.?|invoice|ticket|case|reference|ref|tracking|booking|account|code"
    r"|bestellung|bestellnummer|nummer|rechnung|auftrag|kundennummer|vorgang|sendung"
    r"|订单|单号|编号|发票|号码|快递)[^\d]{0,16}$",
    re.IGNORECASE,
)
_CONTEXT_REACH = 40
_NUMBER = re.compile(
    r"(?<![\w.,])[-−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?)(?![\w]|[.,]\d)"
)
_NUMERAL = re.compile(NUMERAL, re.IGNORECASE)
_ARTICLES = frozenset(("a", "an", "ein", "eine", "einem", "einen", "einer", "one"))


def find_codes(text: str) -> Iterator[Entity]:
    """Find codes: letters with digits, `#` with either, and digits after a word like `order`.

    Yields:
        Codes, which may overlap each other; the value is in upper case.
    """
    for match in _HASHED.finditer(text):
        code = match["code"]
        if any(map(str.isdecimal, code)):
            yield Entity("code", match.group(), code.upper(), 0.95, Span(*match.span()))
    for match in _LETTERED.finditer(text):
        confidence = 0.9 if match.group().upper() == match.group() else 0.7
        yield Entity("code", match.group(), match.group().upper(), confidence, Span(*match.span()))
    for match in _DIGITS.finditer(text):
        before = text[max(0, match.start() - _CONTEXT_REACH) : match.start()]
        confidence = 0.9 if _CONTEXT.search(before) else 0.5
        yield Entity("code", match.group(), match.group(), confidence, Span(*match.span()))


def find_patterns(text: str, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[Entity]:
    """Find the codes that a persona's slots describe.

    Args:
        text: what to search.
        patterns: by slot.
    """
    for slot, pattern in patterns.items():
        for match in pattern.finditer(text):
            if match.group():
                value = match.group().upper()
                yield Entity("code", match.group(), value, 0.98, Span(*match.span()), slot)


def find_numbers(text: str) -> Iterator[Entity]:
    """Find numbers, in digits or as a word up to twelve; the value is a plain number."""
    for match in _NUMBER.finditer(text):
        sign = "-" if match.group()[0] in "-−" else ""
        value = sign + plain_decimal(match.group().lstrip("-−"))
        yield Entity("number", match.group(), value, 0.9, Span(*match.span()))
    for match in _NUMERAL.finditer(text):
        word = match.group()
        if word.isdecimal() or word.casefold() in _ARTICLES:
            continue
        yield Entity("number", word, str(number_of(word)), 0.6, Span(*match.span()))
