"""A tally leaves a histogram as if each value had been observed."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Histogram

from serve_app.telemetry.tally import Tally

BOUNDS = (0.01, 0.1, 1.0)


def histogram() -> Histogram:
    return Histogram("a_seconds", "A.", buckets=BOUNDS, registry=CollectorRegistry())


def samples(made: Any) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in made.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_flush_comes_to_the_same_as_observing_each_value() -> None:
    one_by_one, at_once, tally = histogram(), histogram(), Tally(BOUNDS)
    before = samples(one_by_one), samples(at_once)
    for value in (0.0, 0.01, 0.011, 0.5, 0.5, 1.0, 7.0):
        one_by_one.observe(value)
        tally.add(value)
    tally.flush(at_once)
    changes = [
        {key: round(after[key] - start.get(key, 0.0), 9) for key in after}
        for start, after in zip(before, (samples(one_by_one), samples(at_once)), strict=True)
    ]
    assert changes[0] == changes[1]
    assert changes[0][("a_seconds_bucket", "0.01")] == 2


def test_a_tally_that_was_flushed_begins_anew() -> None:
    made, tally = histogram(), Tally(BOUNDS)
    tally.add(0.5)
    tally.flush(made)
    before = samples(made)
    tally.flush(made)
    assert samples(made) == before
