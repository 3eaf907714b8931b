"""Amounts of money in a text, with their currency."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

from serve_app.dialogue.nlu.numerals import number_of
from serve_app.dialogue.nlu.understanding import Entity, Span

__all__ = ["find_amounts", "plain_decimal"]

_CURRENCIES = ("USD", "EUR", "GBP", "CHF", "CNY", "RMB", "JPY", "INR", "CAD", "AUD")
_SIGNS = {"US$": "USD", "$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "￥": "CNY", "₹": "INR"}
_NAMES = {
    "dollars": "USD", "dollar": "USD", "bucks": "USD", "us-dollar": "USD",
    "euros": "EUR", "euro": "EUR",
    "pounds": "GBP", "pound": "GBP", "pfund": "GBP",
    "francs": "CHF", "franken": "CHF",
    "yen": "JPY", "yuan": "CNY", "rupees": "INR",
    "人民币": "CNY", "美元": "USD", "美金": "USD", "欧元": "EUR", "英镑": "GBP", "日元": "JPY",
    "元": "CNY", "块钱": "CNY", "块": "CNY",
}  # fmt: skip
# A pound is a weight too, a block of something is 块, and $ and ¥ belong to several countries.
_UNSURE = {"pounds", "pound", "pfund", "块", "$", "¥"}

_NUMBER = r"(?P<number>\d{1,3}(?:[ .,'’]\d{3})+(?:[.,]\d{1,2})?|\d+(?:[.,]\d{1,2})?)(?![\d])"
_HAN_NUMBER = r"(?P<han>[一二两三四五六七八九十百千万]{1,9})"
_SIGN = "|".join(map(re.escape, _SIGNS))
_NAME = "|".join(sorted(_NAMES, key=len, reverse=True))
_CODE = "|".join(_CURRENCIES)
_PATTERNS = (
    re.compile(rf"(?<![A-Za-z])(?P<money>{_SIGN})\s?{_NUMBER}"),
    re.compile(rf"(?<![\d.,]){_NUMBER}\s?(?P<money>{_SIGN})"),
    re.compile(rf"\b(?P<money>{_CODE})\s?{_NUMBER}"),
    re.compile(rf"(?<![\d.,A-Za-z-]){_NUMBER}\s?(?P<money>{_CODE})\b"),
    re.compile(rf"(?<![\d.,A-Za-z-]){_NUMBER}\s?(?P<money>{_NAME})(?![a-z])", re.IGNORECASE),
    re.compile(rf"{_HAN_NUMBER}(?P<money>{_NAME})"),
)
_HAN = re.compile(r"[\u4e00-\u9fff]")


def find_amounts(text: str) -> Iterator[Entity]:
    """Find amounts.

    Yields:
        Amounts, which may overlap each other; the value is a plain number and an ISO 4217 code.
    """
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            money = match["money"]
            currency = _SIGNS.get(money) or _NAMES.get(money.casefold()) or money
            if currency == "RMB" or (money == "¥" and _HAN.search(text)):
                currency = "CNY"
            groups = match.groupdict()
            if groups.get("han"):
                value = str(number_of(groups["han"]))
            else:
                value = plain_decimal(groups["number"])
            confidence = 0.8 if money.casefold() in _UNSURE else 0.97
            span = Span(*match.span())
            yield Entity("amount", match.group(), f"{value} {currency}", confidence, span)


def plain_decimal(text: str) -> str:
    """Return a number without separators of thousands and with a point.

    The last separator is the decimal one unless exactly three digits follow it.
    """
    digits = re.split(r"[ .,'’]", text)
    if len(digits) > 1 and len(digits[-1]) != 3:
        return str(Decimal(f"{''.join(digits[:-1])}.{digits[-1]}"))
    return str(Decimal("".join(digits)))
