"""Entities: what is found, where, and in which form."""

from __future__ import annotations

import time
from datetime import date

import pytest

from serve_app.dialogue.nlu.entities import EntityFinder
from serve_app.dialogue.nlu.understanding import Entity

WEDNESDAY = date(2026, 3, 11)


def find(text: str, region: str = "US", today: date = WEDNESDAY) -> list[tuple[str, str, str]]:
    found = EntityFinder(region).find(text, today)
    for entity in found:
        assert text[entity.span.start : entity.span.end] == entity.text
        assert 0 < entity.confidence <= 1
    return [(entity.kind, entity.text, entity.value) for entity in found]


def values(text: str, region: str = "US", today: date = WEDNESDAY) -> list[str]:
    return [value for _, _, value in find(text, region, today)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("today", "2026-03-11"),
        ("the day before yesterday", "2026-03-09"),
        ("on Wednesday", "2026-03-18"),
        ("last Wednesday", "2026-03-04"),
        ("next Sunday", "2026-03-22"),
        ("in a month", "2026-04-11"),
        ("a year ago", "2025-03-11"),
        ("last month", "2026-02"),
        ("this week", "2026-W11"),
        ("December 31st", "2025-12-31"),
        ("1. Mai", "2026-05-01"),
        ("bis 24.12. bitte", "2025-12-24"),
        ("vorgestern", "2026-03-09"),
        ("letzten Freitag", "2026-03-06"),
        ("vor einem Monat", "2026-02-11"),
        ("前天", "2026-03-09"),
        ("大后天", "2026-03-14"),
        ("两周后", "2026-03-25"),
        ("下下周三", "2026-03-25"),
        ("下个月", "2026-04"),
    ],
)
def test_a_date_is_a_day_a_week_or_a_month(text: str, value: str) -> None:
    assert values(text) == [value]


@pytest.mark.parametrize(
    ("today", "text", "value"),
    [
        (date(2026, 1, 31), "in one month", "2026-02-28"),
        (date(2028, 2, 29), "a year ago", "2027-02-28"),
        (date(2026, 12, 30), "next month", "2027-01"),
        (date(2026, 12, 30), "next week", "2027-W01"),
        (date(2026, 12, 30), "January 2", "2027-01-02"),
    ],
)
def test_months_and_years_end_where_they_end(today: date, text: str, value: str) -> None:
    assert values(text, today=today) == [value]


def test_the_country_decides_what_comes_first_in_a_date() -> None:
    assert values("03/04/2026", "US") == ["2026-03-04"]
    assert values("03/04/2026", "DE") == ["2026-04-03"]
    assert values("25/12/2026", "US") == ["2026-12-25"]


@pytest.mark.parametrize(
    "text", ["Guten Morgen", "May I ask?", "the 31.2.2026x", "we march on", "she sat in the sun"]
)
def test_what_only_looks_like_a_date_is_none(text: str) -> None:
    assert [kind for kind, _, _ in find(text) if kind == "date"] == []


def test_a_day_that_does_not_exist_is_no_date() -> None:
    assert [kind for kind, _, _ in find("on February 30, 2026")] != ["date"]
    assert [value for kind, _, value in find("30.02.2026", "DE") if kind == "date"] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1,250", "1250 USD"),
        ("1.250,50 €", "1250.50 EUR"),
        ("CHF 20", "20 CHF"),
        ("12 Euro", "12 EUR"),
        ("99.90 GBP", "99.90 GBP"),
        ("一百二十元", "120 CNY"),
        ("两万元", "20000 CNY"),
        ("RMB 300", "300 CNY"),
    ],
)
def test_an_amount_is_a_number_and_a_currency(text: str, value: str) -> None:
    assert values(text) == [value]


def test_nothing_is_found_twice() -> None:
    text = "Mail a.b@shop123.com on 5/6/2026 about #A-99 and $5, or call +1 212 555 0147"
    kinds = [kind for kind, _, _ in find(text)]
    assert kinds == ["email", "date", "code", "amount", "phone"]


def test_bare_digits_are_a_code_after_a_word_that_says_so_and_otherwise_perhaps() -> None:
    finder = EntityFinder("US")
    (sure,) = finder.find("my order number is 4471120", WEDNESDAY)
    (unsure,) = finder.find("it says 4471120", WEDNESDAY)
    assert sure.kind == unsure.kind == "code"
    assert sure.confidence > 0.8 > unsure.confidence


def test_a_personas_pattern_and_choices_go_before_everything_else() -> None:
    finder = EntityFinder(
        "US",
        {"table": r"T\d{1,2}"},
        {"size": {"large": ["big", "family size"], "small": []}, "time": {"later": ["tomorrow"]}},
    )
    found: tuple[Entity, ...] = finder.find("two BIG pizzas for t12 tomorrow", WEDNESDAY)
    assert [(entity.kind, entity.value, entity.slot) for entity in found] == [
        ("number", "2", None),
        ("choice", "large", "size"),
        ("code", "T12", "table"),
        ("choice", "later", "time"),
    ]
    assert finder.find("xT12x bigger", WEDNESDAY) == ()


def test_han_needs_no_spaces_around_a_choice() -> None:
    finder = EntityFinder("CN", choices={"size": {"large": ["大份"]}})
    (found,) = finder.find("我要大份的", WEDNESDAY)
    assert found.value == "large"


@pytest.mark.parametrize(
    "hostile",
    ["1" * 2000, "1,1" * 700, "-" * 2000, "a@" * 1000, "AB-1" * 500, "one in " * 280, "千" * 2000],
)
def test_no_text_keeps_the_patterns_busy(hostile: str) -> None:
    finder = EntityFinder("US")
    finder.find("warm +1 212 555 0147", WEDNESDAY)
    began = time.process_time()
    finder.find(hostile, WEDNESDAY)
    assert time.process_time() - began < 0.5
