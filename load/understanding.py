"""`python -m load.understanding`: how well turns are understood, and how fast."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from load import command_line as options
from load import labelled
from load.labelled import PARTS, Part
from load.report import console, write_json
from serve_app.dialogue.nlu.emotion import EmotionDetector
from serve_app.dialogue.nlu.entities import EntityFinder
from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.nlu.language import LanguageDetector
from serve_app.dialogue.nlu.scores import Score, score_entities, score_labels
from serve_app.dialogue.nlu.sentiment import SentimentAnalyzer
from serve_app.dialogue.personas.catalog import PersonaCatalog, shipped_personas
from serve_app.dialogue.personas.intent_accuracy import held_out, training
from serve_app.dialogue.personas.loading import PersonaFile
from serve_app.dialogue.personas.understanding import intent_examples, understander_of

__all__ = ["Mistake", "TaskResult", "Timing", "app", "measure", "measure_time"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

_TIMED_PERSONA = "customer_service"
# Of other personas' sentences without an intent, some would be theirs.
_SHOP_AND_WRITER = ("customer_service", "writer")


@dataclass(frozen=True, slots=True)
class Mistake:
    """A sentence that was understood wrongly."""

    sentence: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What came of one task on one part of the sentences.

    Attributes:
        task: what was to be found.
        part: `training`, or `held_out`, which nothing was fitted on or written after.
        score: how often it was right.
        mistakes: where it wasn't.
    """

    task: str
    part: Part
    score: Score
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds that a whole turn takes on one core.

    Attributes:
        turns: how many were timed.
        p50: half of them took no longer.
        p99: all but one in a hundred took no longer.
    """

    turns: int
    p50: float
    p99: float


@app.command()
def understanding(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="How often each sentence is timed.")] = 20,
    mistakes: Annotated[
        bool,
        typer.Option("--mistakes", help="List what was wrong in the training parts."),
    ] = False,
    json: options.JsonFile = None,
) -> None:
    """Measure language, sentiment, emotion, entities and intents on labelled sentences.

    Prints accuracy and macro-F1 for the part that may be looked at and for the one that is held out,
    and the time of a turn.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = IntentStore(Path(folder))
        found, timing = measure(store), measure_time(store, rounds)
    console.print(_table(found, timing))
    if mistakes:
        for result in found:
            if result.part == "training":
                for mistake in result.mistakes:
                    console.print(
                        f"{result.task}: {mistake.sentence!r} is {mistake.expected}, "
                        f"found {mistake.found}",
                        markup=False,
                    )
    if json is not None:
        write_json(json, {"tasks": found, "ms_per_turn": timing})


def measure(store: IntentStore) -> list[TaskResult]:
    """Measure every task.

    Args:
        store: where fitted intent models go.
    """
    found = [_languages()]
    for part in PARTS:
        found += [*_sentiments(part), _emotions(part), _entities(part)]
    catalog = PersonaCatalog(shipped_personas())
    for each in catalog.personas():
        found += _intents(each, store)
    for name in _SHOP_AND_WRITER:
        found += _out_of_scope(catalog.get(name), store)
    return found


def measure_time(store: IntentStore, rounds: int) -> Timing:
    """Time whole turns: all labelled sentences, as one persona gets them.

    Args:
        store: where fitted intent models go.
        rounds: how often each sentence is understood.
    """
    persona = PersonaCatalog(shipped_personas()).get(_TIMED_PERSONA).persona
    understander = understander_of(persona, store)
    today = labelled.entities()["training"][0].today
    texts = [each.text for part in PARTS for each in labelled.sentiments()[part]]
    texts += [each.text for part in PARTS for each in labelled.entities()[part]]
    texts += [text for intent in persona.intents.values() for text in intent.held_out]
    for text in texts:
        understander.understand(text, today=today, expected_language=persona.language)
    times = []
    for _ in range(rounds):
        for text in texts:
            began = time.perf_counter()
            understander.understand(text, today=today, expected_language=persona.language)
            times.append((time.perf_counter() - began) * 1e3)
    p50, p99 = np.percentile(times, [50, 99])
    return Timing(len(times), float(p50), float(p99))


def _languages() -> TaskResult:
    texts = labelled.languages()
    detector = LanguageDetector(tuple(texts))
    rows = [(text, code) for code, every in texts.items() for text in every]
    return _labels("language", "held_out", rows, lambda text: detector.detect(text).value)


def _sentiments(part: Part) -> list[TaskResult]:
    analyzer, emotions = SentimentAnalyzer(), EmotionDetector()
    rows = labelled.sentiments()[part]

    def of(code: str) -> TaskResult:
        ours = [(row.text, row.sentiment) for row in rows if row.language == code]

        def find(text: str) -> str:
            return analyzer.analyze(text, code, emotions.detect(text)).value

        return _labels(f"sentiment, {code}", part, ours, find)

    return [of(code) for code in dict.fromkeys(row.language for row in rows)]


def _emotions(part: Part) -> TaskResult:
    detector = EmotionDetector()
    rows = [(row.text, row.emotion) for row in labelled.sentiments()[part]]
    return _labels("emotion", part, rows, lambda text: detector.detect(text).value)


def _entities(part: Part) -> TaskResult:
    rows = labelled.entities()[part]
    finder = cache(EntityFinder)
    found = [finder(row.region).find(row.text, row.today) for row in rows]
    mistakes = []
    for row, ours in zip(rows, found, strict=True):
        expected, given = (
            [f"{e.text}={e.value} ({e.kind})" for e in x] for x in (row.entities, ours)
        )
        if expected != given:
            mistakes.append(Mistake(row.text, "; ".join(expected), "; ".join(given)))
    score = score_entities([row.entities for row in rows], found)
    return TaskResult("entities", part, score, tuple(mistakes))


def _intents(file: PersonaFile, store: IntentStore) -> list[TaskResult]:
    persona = file.persona
    examples = intent_examples(persona)
    if not examples:
        return []
    model = store.model(persona.name, examples)
    apart = held_out(persona, model)
    if apart is None:
        return []
    return [
        TaskResult(
            f"intent, {persona.name}",
            part,
            accuracy.score,
            tuple(
                Mistake(each.sentence, each.expected or "none", each.found or "none")
                for each in accuracy.mistakes
            ),
        )
        for part, accuracy in zip(PARTS, (training(persona, model), apart), strict=True)
    ]


def _out_of_scope(file: PersonaFile, store: IntentStore) -> list[TaskResult]:
    persona = file.persona
    understander = understander_of(persona, store)
    today = labelled.entities()["training"][0].today

    def find(text: str) -> str:
        return understander.understand(text, today=today).intent.name or "none"

    texts = labelled.out_of_scope()
    return [
        _labels(f"no intent, {persona.name}", part, [(text, "none") for text in texts[part]], find)
        for part in PARTS
    ]


def _labels(
    task: str, part: Part, rows: Sequence[tuple[str, str]], find: Callable[[str], str]
) -> TaskResult:
    found = [find(text) for text, _ in rows]
    expected = [label for _, label in rows]
    mistakes = tuple(
        Mistake(text, label, other)
        for (text, label), other in zip(rows, found, strict=True)
        if label != other
    )
    return TaskResult(task, part, score_labels(expected, found), mistakes)


def _table(found: Sequence[TaskResult], timing: Timing) -> Table:
    table = Table(
        "task",
        "part",
        title=f"A turn takes {timing.p50:.2f} ms (p50), {timing.p99:.2f} ms (p99)",
        title_justify="left",
    )
    for column in ("sentences", "accuracy", "macro-F1"):
        table.add_column(column, justify="right")
    for result in sorted(found, key=lambda each: (each.task, each.part == "held_out")):
        score = result.score
        table.add_row(
            result.task,
            result.part.replace("_", " "),
            str(score.sentences),
            f"{score.accuracy:.1%}",
            f"{score.macro_f1:.3f}",
        )
    return table


if __name__ == "__main__":
    options.run(app)
