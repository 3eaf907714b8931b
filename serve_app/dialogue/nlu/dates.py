"""Dates in a text, written out or relative to today, in English, German and Chinese."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta

from serve_app.dialogue.nlu.numerals import NUMERAL, number_of
from serve_app.dialogue.nlu.understanding import Entity, Span

__all__ = ["find_dates"]

_MONTH_NAMES = (
    "january jan januar jänner",
    "february feb februar",
    "march mar märz maerz",
    "april apr",
    "may mai",
    "june jun juni",
    "july jul juli",
    "august aug",
    "september sept sep",
    "october oct oktober okt",
    "november nov",
    "december dec dezember dez",
)
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES, 1) for name in names.split()}
_DAY_NAMES = (
    "monday montag",
    "tuesday dienstag",
    "wednesday mittwoch",
    "thursday donnerstag",
    "friday freitag",
    "saturday samstag sonnabend",
    "sunday sonntag",
)
_WEEKDAYS = {name: number for number, names in enumerate(_DAY_NAMES) for name in names.split()}
_HAN_WEEKDAYS = {sign: number for number, sign in enumerate("一二三四五六")} | {"日": 6, "天": 6}

_DAYS_FROM_TODAY = {
    "the day after tomorrow": 2,
    "day after tomorrow": 2,
    "the day before yesterday": -2,
    "day before yesterday": -2,
    "tomorrow": 1,
    "yesterday": -1,
    "today": 0,
    "tonight": 0,
    "übermorgen": 2,
    "vorgestern": -2,
    "gestern": -1,
    "heute": 0,
    "morgen": 1,
    "大后天": 3,
    "大前天": -3,
    "后天": 2,
    "前天": -2,
    "明天": 1,
    "明晚": 1,
    "昨天": -1,
    "昨晚": -1,
    "今天": 0,
    "今晚": 0,
}
_UNIT_DAYS = {
    "day": 1,
    "tag": 1,
    "天": 1,
    "日": 1,
    "week": 7,
    "woche": 7,
    "周": 7,
    "星期": 7,
    "礼拜": 7,
}


def _any(names: dict[str, int]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


_MONTH = rf"(?P<month>{_any(_MONTHS)})\b\.?"
_DAY = r"(?P<day>\d{1,2})"
_YEAR = r"(?P<year>\d{4})"
_START, _END = r"(?<![\w./-])", r"(?![\w/-])"
_UNITS = r"(?P<unit>days?|weeks?|months?|years?|tag(?:en?)?|wochen?|monat(?:en?)?|jahr(?:en?)?)"
_HAN_UNIT = r"(?P<unit>天|日|周|星期|礼拜|个月|年)"
_COUNT = rf"(?P<count>{NUMERAL})"

_Found = tuple[str, float]
_Reader = Callable[[re.Match[str], date, bool], _Found | None]


def find_dates(text: str, today: date, *, day_first: bool) -> Iterator[Entity]:
    """Find dates.

    A date without a year is the nearest one, before or after today. A weekday is the next one, unless
    the text says otherwise; `next` and `nächsten` mean next week's.

    Args:
        text: what to search.
        today: what relative dates count from.
        day_first: whether 3/4/2026 is in April.

    Yields:
        Dates, which may overlap each other; the value is a day, `2026-W11` or `2026-04`.
    """
    for pattern, read in _PATTERNS:
        for match in pattern.finditer(text):
            try:
                found = read(match, today, day_first)
            except (ValueError, OverflowError):
                continue  # 31 February, or a year beyond the calendar
            if found is not None:
                value, confidence = found
                span = Span(*match.span())
                yield Entity("date", match.group(), value, confidence, span)


def _written(match: re.Match[str], today: date, _: bool) -> _Found:
    parts = match.groupdict()
    month = parts["month"].casefold()
    number = int(month) if month.isdecimal() else _MONTHS[month]
    day = int(parts["day"])
    if parts.get("year"):
        year = int(parts["year"])
        return date(year + 2000 if year < 100 else year, number, day).isoformat(), 0.97
    return _nearest(today, number, day).isoformat(), 0.85


def _nearest(today: date, month: int, day: int) -> date:
    found = []
    for year in (today.year - 1, today.year, today.year + 1):
        try:
            found.append(date(year, month, day))
        except ValueError:
            continue  # 29 February
    if not found:
        msg = "no such day in these years"
        raise ValueError(msg)
    return min(found, key=lambda each: abs(each - today))


def _slashed(match: re.Match[str], _: date, day_first: bool) -> _Found:
    first, second, year = (int(match[name]) for name in ("first", "second", "year"))
    year += 2000 if year < 100 else 0
    if first > 12 or second > 12:
        day, month = max(first, second), min(first, second)
        return date(year, month, day).isoformat(), 0.95
    day, month = (first, second) if day_first else (second, first)
    return date(year, month, day).isoformat(), 0.95 if first == second else 0.7


def _named_day(match: re.Match[str], today: date, _: bool) -> _Found:
    days = _DAYS_FROM_TODAY[" ".join(match.group().casefold().split())]
    return (today + timedelta(days)).isoformat(), 0.97


def _after(match: re.Match[str], today: date, _: bool) -> _Found:
    return _shifted(today, number_of(match["count"]), match["unit"].casefold()), 0.95


def _ago(match: re.Match[str], today: date, _: bool) -> _Found:
    return _shifted(today, -number_of(match["count"]), match["unit"].casefold()), 0.95


def _shifted(today: date, count: int, unit: str) -> str:
    for name, days in _UNIT_DAYS.items():
        if unit.startswith(name):
            return (today + timedelta(count * days)).isoformat()
    months = count * (12 if unit.startswith(("year", "jahr", "年")) else 1)
    return _month_shifted(today, months).isoformat()


def _month_shifted(today: date, months: int) -> date:
    years, month = divmod(today.month - 1 + months, 12)
    first = date(today.year + years, month + 1, 1)
    last = (date(first.year + month // 11, (month + 1) % 12 + 1, 1) - timedelta(1)).day
    return first.replace(day=min(today.day, last))


def _weekday(match: re.Match[str], today: date, _: bool) -> _Found:
    wanted = _WEEKDAYS[match["weekday"].casefold()]
    which = (match["which"] or "").casefold()
    if which.startswith(("last", "letzt", "vergangen")):
        return (today - timedelta((today.weekday() - wanted) % 7 or 7)).isoformat(), 0.9
    if which.startswith(("next", "nächst")):
        monday = today - timedelta(today.weekday())
        return (monday + timedelta(7 + wanted)).isoformat(), 0.75
    ahead = (wanted - today.weekday()) % 7
    return (today + timedelta(ahead or 7)).isoformat(), 0.9 if ahead else 0.7


def _han_weekday(match: re.Match[str], today: date, _: bool) -> _Found:
    wanted = _HAN_WEEKDAYS[match["weekday"]]
    which = match["which"] or ""
    monday = today - timedelta(today.weekday())
    weeks = which.count("下") - which.count("上")
    if not which:
        ahead = (wanted - today.weekday()) % 7
        return (today + timedelta(ahead or 7)).isoformat(), 0.85
    return (monday + timedelta(7 * weeks + wanted)).isoformat(), 0.95


def _span_of_days(match: re.Match[str], today: date, _: bool) -> _Found:
    which, unit = match["which"].casefold(), match["unit"].casefold()
    step = 0
    if which.startswith(("next", "nächst", "kommend", "下")):
        step = 1
    elif which.startswith(("last", "letzt", "vergangen", "上")):
        step = -1
    if unit.startswith(("month", "monat", "个月", "月")):
        return _month_shifted(today.replace(day=1), step).isoformat()[:7], 0.9
    year, week, _day = (today + timedelta(7 * step)).isocalendar()
    return f"{year}-W{week:02d}", 0.9


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_PATTERNS: tuple[tuple[re.Pattern[str], _Reader], ...] = tuple(
    (_compiled(pattern), reader)
    for pattern, reader in (
        (rf"{_START}{_YEAR}[-/](?P<month>\d{{1,2}})[-/]{_DAY}{_END}", _written),
        (rf"(?:{_YEAR}年)?(?P<month>\d{{1,2}})月{_DAY}[日号]", _written),
        (
            rf"{_START}{_DAY}(?:st|nd|rd|th|\.)?\s*(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?{_END}",
            _written,
        ),
        (
            rf"{_START}{_MONTH}\s+(?:the\s+)?{_DAY}(?:st|nd|rd|th)?\b(?:,?\s+{_YEAR})?{_END}",
            _written,
        ),
        (rf"{_START}{_DAY}\.\s?(?P<month>\d{{1,2}})\.\s?(?P<year>\d{{4}}|\d{{2}}){_END}", _written),
        (
            rf"(?:(?<=\b(?:am|ab)\s)|(?<=\b(?:zum|vom|bis|den|dem)\s)){_DAY}\.(?P<month>\d{{1,2}})\.{_END}",
            _written,
        ),
        (
            rf"{_START}(?P<first>\d{{1,2}})/(?P<second>\d{{1,2}})/(?P<year>\d{{4}}|\d{{2}}){_END}",
            _slashed,
        ),
        # Guten Morgen is no date, and neither is heute Morgen's second word.
        (rf"(?<!guten )(?<!heute )(?<!\w)(?:{_any(_DAYS_FROM_TODAY)})(?!\w)", _named_day),
        (r"大后天|大前天|[后前明昨今]天|[明昨今]晚", _named_day),
        (rf"\b(?:in|within)\s+{_COUNT}\s+{_UNITS}\b", _after),
        (rf"{_COUNT}\s+{_UNITS}\s+from\s+(?:now|today)\b", _after),
        (rf"{_COUNT}\s+{_UNITS}\s+ago\b", _ago),
        (rf"\bvor\s+{_COUNT}\s+{_UNITS}\b", _ago),
        (rf"{_COUNT}个?{_HAN_UNIT}(?:之后|以后|后|内)", _after),
        (rf"{_COUNT}个?{_HAN_UNIT}(?:之前|以前|前)", _ago),
        (
            r"\b(?:(?:on\s+)?(?P<which>next|this|last|coming|nächste[nr]?|kommenden?|diesen|letzten|vergangenen)\s+"
            rf"|(?:on|am)\s+)?(?P<weekday>{_any(_WEEKDAYS)})s?\b",
            _weekday,
        ),
        (
            r"(?P<which>[下上]{1,2}|这|本)?个?(?:周|星期|礼拜)(?P<weekday>[一二三四五六日天])",
            _han_weekday,
        ),
        (
            r"\b(?P<which>next|this|last|nächste[nrs]?|kommende[nrs]?|diese[nrs]?|letzte[nrs]?)\s+"
            r"(?P<unit>week|month|woche|monat)\b",
            _span_of_days,
        ),
        (
            r"(?P<which>[下上]|这|本)个?(?P<unit>周|星期|礼拜|月)(?![一二三四五六日天])",
            _span_of_days,
        ),
    )
)
