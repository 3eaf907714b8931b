"""How many replicas a number of users needs, from what steps take."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from load import capacity
from load.capacity import Demand, ReplicaCapacity, need
from load.queueing import least_servers, wait_beyond
from load.report import console
from load.step_times import StepTimes
from serve_app.errors import ConfigError

TIMES = StepTimes(itself=0.02, stream=0.0005, prompt_token=0.00025)
DEMAND = Demand(
    turns_per_hour=6.0,
    peak=3.0,
    new_tokens=80.0,
    output_tokens=128.0,
    inter_token_s=0.15,
    ttft_s=2.0,
)


def report(times: StepTimes, levels: tuple[int, ...] = (1, 8, 32)) -> dict[str, Any]:
    """Return what an engine whose steps take exactly this would report."""
    works = [
        {
            "decodes": 100,
            "decoded": 100 * streams,
            "decode_s": 100 * times.step(streams),
            "mixed": 20,
            "mixed_decoded": 20 * (streams - 1),
            "prefilled": 900,
            "mixed_s": 20 * times.step(streams - 1) + 900 * times.prompt_token,
        }
        for streams in levels
    ]
    return {"engine": {"levels": [{"work": work} for work in works]}}


def test_step_times_are_found_in_what_the_engine_reports() -> None:
    fitted = StepTimes.fit(report(TIMES))
    assert fitted.itself == pytest.approx(TIMES.itself)
    assert fitted.stream == pytest.approx(TIMES.stream)
    assert fitted.prompt_token == pytest.approx(TIMES.prompt_token)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "no report of"),
        ({"engine": 3}, "no report of"),
        (report(TIMES, (8,)), "measure several"),
    ],
)
def test_a_report_that_leaves_too_much_open_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        StepTimes.fit(wrong)


def test_the_wait_is_erlangs() -> None:
    # One server: the share of the time that it is busy; two with one erlang: a third.
    assert wait_beyond(1, 0.7, 0.0, 1.0) == pytest.approx(0.7)
    assert wait_beyond(2, 1.0, 0.0, 1.0) == pytest.approx(1 / 3)
    assert wait_beyond(1, 0.7, 2.0, 1.0) == pytest.approx(0.7 * math.exp(-0.3 * 2.0))
    assert wait_beyond(3, 3.0, 10.0, 1.0) == 1.0


@pytest.mark.parametrize("erlangs", [0.2, 3.0, 47.0, 20_000.0])
@pytest.mark.parametrize("at_a_time", [1, 16])
def test_no_fewer_servers_would_do(erlangs: float, at_a_time: int) -> None:
    servers = least_servers(erlangs, 0.5, 4.0, beyond=0.05, at_a_time=at_a_time)
    assert servers % at_a_time == 0
    assert wait_beyond(servers, erlangs, 0.5, 4.0) <= 0.05
    fewer = servers - at_a_time
    assert fewer == 0 or wait_beyond(fewer, erlangs, 0.5, 4.0) > 0.05


def test_a_replica_takes_as_many_streams_as_have_their_tokens_in_time() -> None:
    wide = ReplicaCapacity.of(TIMES, DEMAND, slots=32)
    assert wide.streams == 32
    tight = ReplicaCapacity.of(
        TIMES, Demand(6.0, 3.0, 80.0, 128.0, inter_token_s=0.025, ttft_s=2.0), slots=32
    )
    assert tight.streams < 32
    assert tight.turn_s / 128 <= 0.025 < (tight.turn_s + 80 * 0.00025 + 128 * 0.0005) / 128
    # Little's law, both ways round.
    assert wide.turns_per_s * wide.turn_s == pytest.approx(wide.streams)


def test_a_million_users_need_the_work_the_headroom_and_the_spare() -> None:
    replica = ReplicaCapacity.of(TIMES, DEMAND, slots=32)
    few, many = (
        need(users, DEMAND, replica, utilisation=0.8, spare=2, gpus=0.5)
        for users in (10, 1_000_000)
    )
    assert (few.replicas, few.gpus) == (3, 1.5)
    assert many.turns_per_s == pytest.approx(1_000_000 * 6 / 3600 * 3)
    assert many.replicas - 2 == math.ceil(many.turns_per_s / replica.turns_per_s / 0.8)
    assert many.utilisation <= 0.8
    assert many.late <= 0.05


def test_a_demand_that_no_number_of_replicas_meets_says_what_to_change() -> None:
    slow = StepTimes(itself=1.0, stream=0.1, prompt_token=0.1)
    with pytest.raises(ConfigError, match="--inter-token-ms"):
        ReplicaCapacity.of(slow, DEMAND, slots=32)
    patient = Demand(6.0, 3.0, 80.0, 128.0, inter_token_s=10.0, ttft_s=2.0)
    with pytest.raises(ConfigError, match="--ttft-s"):
        need(
            10,
            patient,
            ReplicaCapacity.of(slow, patient, slots=1),
            utilisation=0.8,
            spare=0,
            gpus=1.0,
        )


def test_the_command_shows_the_formula_and_writes_table_plot_and_json(tmp_path: Path) -> None:
    measured, plot, written = tmp_path / "m.json", tmp_path / "c.png", tmp_path / "c.json"
    measured.write_text(json.dumps(report(TIMES)))
    arguments = ["--measured", str(measured), "--plot", str(plot), "--json", str(written)]
    with console.capture() as capture:
        result = CliRunner().invoke(capacity.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    said = capture.get()
    assert "Little's law" in said
    assert "1,000,000" in said
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(written.read_text())
    assert found["step_times_s"]["itself"] == pytest.approx(0.02)
    assert [one["users"] for one in found["needs"]] == [100, 1000, 10_000, 100_000, 1_000_000]


@pytest.mark.parametrize("given", [[], ["--step-ms", "3"]])
def test_step_times_must_be_given_in_one_way(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="--measured"):
        CliRunner().invoke(capacity.app, given, catch_exceptions=False)
