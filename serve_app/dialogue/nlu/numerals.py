"""Small numbers written as words, in English, German and Chinese."""

from __future__ import annotations

__all__ = ["NUMERAL", "number_of"]

_WORDS = {
    word: value
    for value, words in {
        1: "a an one ein eine einem einen einer eins 一",
        2: "two zwei 二 两",
        3: "three drei 三",
        4: "four vier 四",
        5: "five fünf 五",
        6: "six sechs 六",
        7: "seven sieben 七",
        8: "eight acht 八",
        9: "nine neun 九",
        10: "ten zehn 十",
        11: "eleven elf 十一",
        12: "twelve zwölf 十二",
    }.items()
    for word in words.split()
}
_HAN_DIGITS = {digit: _WORDS[digit] for digit in "一二两三四五六七八九"}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10_000}

_ROMAN = "|".join(
    sorted(
        (word for word in _WORDS if word.isascii() or "ü" in word or "ö" in word),
        key=len,
        reverse=True,
    )
)
NUMERAL = rf"(?:\d{{1,4}}|[一二两三四五六七八九十百千万]{{1,9}}|\b(?:{_ROMAN})\b)"
"""Regular expression of what `number_of` reads; for use without regard to letter case."""


def number_of(text: str) -> int:
    """Return the number that a match of `NUMERAL` stands for."""
    if text.isdecimal():
        return int(text)
    word = text.casefold()
    return _WORDS[word] if word in _WORDS else _han_number(word)


def _han_number(text: str) -> int:
    total, digit = 0, 0
    for sign in text:
        if sign == "万":
            total, digit = ((total + digit) or 1) * _HAN_UNITS[sign], 0
        elif sign in _HAN_UNITS:
            total, digit = total + (digit or 1) * _HAN_UNITS[sign], 0
        else:
            digit = _HAN_DIGITS[sign]
    return total + digit
