"""`python -m load.understanding`: the table, the report, and the floors under its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from load import understanding
from load.labelled import entities, languages, marked, sentiments
from load.report import console
from serve_app.dialogue.nlu.scores import score_entities, score_labels

MOST_MS = 5.0


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path: Path = tmp_path_factory.mktemp("understanding") / "report.json"
    with console.capture() as printed:
        result = CliRunner().invoke(
            understanding.app, ["--rounds", "1", "--mistakes", "--json", str(path)]
        )
    assert result.exit_code == 0, result.output
    for word in ("held out", "macro-F1", "intent, tutor", "sentiment, zh", "ms (p99)"):
        assert word in printed.get()
    return json.loads(path.read_bytes())


def score(report: dict, task: str, part: str) -> dict:
    (found,) = (
        each["score"] for each in report["tasks"] if (each["task"], each["part"]) == (task, part)
    )
    return found


def test_there_are_enough_sentences(report: dict) -> None:
    assert sum(len(rows) for rows in sentiments().values()) >= 60
    assert sum(len(rows) for rows in entities().values()) >= 60
    assert {len(texts) for texts in languages().values()} == {10}
    for persona, intents in (("customer_service", 8), ("tutor", 6)):
        apart = score(report, f"intent, {persona}", "held_out")["sentences"]
        learned = score(report, f"intent, {persona}", "training")["sentences"]
        assert apart / intents >= 13
        assert (apart + learned) / intents >= 40


@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("entities", 0.95),
        ("emotion", 0.95),
        ("sentiment, en", 0.9),
        ("sentiment, de", 0.9),
        ("sentiment, zh", 0.9),
        ("intent, customer_service", 0.98),
        ("intent, tutor", 0.98),
        ("no intent, customer_service", 0.75),
        ("no intent, writer", 0.75),
    ],
)
def test_what_may_be_looked_at_is_understood(report: dict, task: str, least: float) -> None:
    assert score(report, task, "training")["accuracy"] >= least


def test_a_turn_takes_well_under_five_milliseconds(report: dict) -> None:
    assert report["ms_per_turn"]["p50"] < MOST_MS


def test_marks_are_taken_out_of_a_sentence() -> None:
    text, found = marked("Pay [5 €](amount=5 EUR) [today](date=2026-03-11).")
    assert text == "Pay 5 € today."
    assert [text[each.span.start : each.span.end] for each in found] == ["5 €", "today"]


def test_scores_are_what_they_are_called() -> None:
    labels = score_labels(["a", "a", "b", "b"], ["a", "b", "b", "b"])
    assert labels.accuracy == 0.75
    assert labels.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)
    _, one = marked("[5 €](amount=5 EUR)")
    both = score_entities([one, ()], [one, one])
    assert (both.accuracy, both.macro_f1) == (0.5, pytest.approx(2 / 3))
