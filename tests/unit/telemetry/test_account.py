"""The parts of a request's time are disjoint, come from one clock each, and add up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import serve_app
from serve_app.telemetry import ledger as module
from serve_app.telemetry.account import STAGES, Account, Spent, Stage
from serve_app.telemetry.ledger import Ledger, recording, reset, stage, use, waited

LATENCY = Path(serve_app.__file__).parents[1] / "docs" / "latency.md"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.fixture
def kept() -> Iterator[Ledger]:
    """A ledger in use."""
    made = Ledger()
    token = use(made)
    yield made
    reset(token)


def times(kept: Ledger) -> dict[str, tuple[float, float]]:
    return {one.name: (one.transfer_s, one.compute_s) for one in kept.stages()}


def test_a_stage_is_compute_but_for_what_it_waits_for(clock: Clock, kept: Ledger) -> None:
    with stage("load"):
        clock.passes(2)
        waited(1.5)
    assert times(kept) == {"load": (1.5, 0.5)}


def test_a_stage_inside_of_another_takes_its_time_from_it(clock: Clock, kept: Ledger) -> None:
    with stage("submit"):
        clock.passes(1)
        with stage("tokenize"):
            clock.passes(4)
            waited(3)
        clock.passes(0.5)
    assert times(kept) == {"tokenize": (3, 1), "submit": (0, 1.5)}
    assert kept.booked_s == 5.5


def test_a_stage_that_comes_again_adds_up_and_the_order_is_that_of_the_way(
    clock: Clock, kept: Ledger
) -> None:
    for name in ("store", "load", "load"):
        with stage(name):  # type: ignore[arg-type]
            clock.passes(1)
    assert [(one.name, one.total_s) for one in kept.stages()] == [("load", 2), ("store", 1)]


def test_what_the_other_side_does_not_report_is_transfer(clock: Clock, kept: Ledger) -> None:
    with kept.hop("plan") as hop:
        clock.passes(10)
        hop.answered(Spent(7, (Stage("load", 2, 1), Stage("tokenize", 1, 1))))
    assert times(kept) == {"plan": (3, 2), "load": (2, 1), "tokenize": (1, 1)}
    assert kept.booked_s == 10
    with kept.hop("commit") as hop:
        clock.passes(1)
        hop.answered(None)
    assert times(kept)["commit"] == (1, 0)


def test_a_call_that_fails_is_all_transfer_and_closed(clock: Clock, kept: Ledger) -> None:
    def breaks() -> None:
        clock.passes(3)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), kept.hop("plan"):
        breaks()
    assert times(kept) == {"plan": (3, 0)}
    assert kept.innermost is None


def test_a_message_without_a_report_is_one_of_the_version_before(
    clock: Clock, kept: Ledger
) -> None:
    with kept.hop("plan") as hop:
        clock.passes(3)
        hop.answered(SimpleNamespace())
    assert times(kept) == {"plan": (3, 0)}


def test_no_report_is_longer_than_the_round_trip(clock: Clock, kept: Ledger) -> None:
    """Two clocks may run at different speeds; then the other side's is brought to ours."""
    with kept.hop("plan") as hop:
        clock.passes(4)
        hop.answered(Spent(8, (Stage("load", 2, 4),)))
    assert times(kept) == {"load": (1, 2), "plan": (0, 1)}
    assert kept.booked_s == 4


def test_what_runs_for_somebody_elsewhere_has_a_ledger_of_its_own(
    clock: Clock, kept: Ledger
) -> None:
    with kept.stage("validate"):
        with recording() as recorded:
            with stage("load"):
                clock.passes(2)
            clock.passes(1)
            spent = recorded.spent()
        waited(0.25)
    assert spent == Spent(3, (Stage("load", 0, 2),))
    assert times(kept) == {"validate": (0.25, 2.75)}


def test_where_nobody_keeps_a_ledger_nothing_happens(clock: Clock) -> None:
    with stage("load"):
        clock.passes(1)
        waited(1)
    assert module.current() is None


def test_a_wait_outside_of_every_stage_is_left_to_the_remainder(kept: Ledger) -> None:
    waited(1)
    assert kept.stages() == ()


def test_what_no_stage_has_is_the_remainder() -> None:
    account = Account("r", "", "x", 0, 10, (Stage("plan", 1, 2), Stage("decode", 0, 6)))
    assert (account.accounted_s, account.unaccounted_s) == (9, 1)


def test_every_stage_is_described_in_the_order_of_the_way() -> None:
    section = LATENCY.read_text(encoding="utf-8").split("\n## The stages\n")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == STAGES
