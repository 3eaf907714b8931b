"""Failures are counted under few labels, from zero."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import serve_app
from serve_app.errors import Overloaded, ParleyError, QueueFull
from serve_app.telemetry import metrics, outcomes

API = Path(serve_app.__file__).parents[1] / "docs" / "api.md"


def kinds(root: type[ParleyError] = ParleyError) -> Iterator[type[ParleyError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


def values(metric: object) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in metric.collect()  # type: ignore[attr-defined]
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def test_the_codes_that_are_counted_are_those_that_clients_are_told() -> None:
    """Whoever adds an error adds its code in `outcomes.CODES`, or it counts as `other`."""
    section = API.read_text("utf-8").split("\n## Errors\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \| \d{3} \|", section, re.MULTILINE)) == outcomes.CODES


def test_every_reason_to_refuse_is_one_of_those_that_are_counted() -> None:
    assert {kind.rejection for kind in kinds()} - {None} == outcomes.REJECTIONS


def test_a_refusal_counts_as_an_error_and_by_its_reason() -> None:
    before = values(metrics.ERRORS).get(("overloaded",), 0), values(metrics.REJECTIONS)
    outcomes.count_error(QueueFull("full"))
    outcomes.count_error(Overloaded("nobody"))
    assert values(metrics.ERRORS)[("overloaded",)] == before[0] + 2
    now = values(metrics.REJECTIONS)
    for reason in ("queue_full", "no_replica"):
        assert now[(reason,)] == before[1].get((reason,), 0) + 1


def test_codes_that_nobody_knows_are_counted_together() -> None:
    for number in range(50):
        outcomes.count_error(ParleyError("odd", code=f"odd_{number}"))
    assert {code for (code,) in values(metrics.ERRORS)} <= outcomes.CODES | {outcomes.OTHER}


def test_what_has_never_happened_is_there_at_zero() -> None:
    outcomes.count_from_zero("a-model")
    assert {code for (code,) in values(metrics.ERRORS)} == outcomes.CODES | {outcomes.OTHER}
    assert {reason for (reason,) in values(metrics.REJECTIONS)} == outcomes.REJECTIONS
    assert values(metrics.FINISHED)[("a-model", "abort")] == 0
