"""`python -m load.autoscale`: a day's load against the autoscaling policy, and against Ray's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.figure import Figure
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig
from rich.table import Table

from load import command_line as options
from load.day import Day
from load.report import console, write_json
from load.simulated_fleet import Fleet, Policy, Replay
from load.simulated_replica import SimulatedReplica
from load.step_times import StepTimes
from serve_app.routing.autoscaling import ScaleByWork
from serve_app.settings import GeneratorSettings

__all__ = ["Outcome", "app", "replays"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

_OURS, _RAYS = "ScaleByWork", "Ray's default"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a day came to under one policy.

    Attributes:
        policy: which.
        replica_hours: hours of replicas, those that start and end included.
        cost: what they cost.
        most: most replicas at once.
        changes: decisions that changed their number.
        ttft_p50_s: median of the seconds to a first token.
        ttft_p95_s: their 95th percentile.
        ttft_p99_s: their 99th percentile.
        in_time: share of requests whose first token came within the target.
    """

    policy: str
    replica_hours: float
    cost: float
    most: int
    changes: int
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    in_time: float

    @classmethod
    def of(cls, policy: str, replay: Replay, *, price: float, target_ttft_s: float) -> Outcome:
        """Add up a replay.

        Args:
            policy: its name.
            replay: what became of the day.
            price: of a replica for an hour.
            target_ttft_s: seconds to a first token that are in time.
        """
        waits = _waits(replay)
        p50, p95, p99 = np.percentile(waits, (50, 95, 99)).tolist()
        hours = replay.replica_s / 3600.0
        return cls(
            policy=policy,
            replica_hours=hours,
            cost=hours * price,
            most=max(replay.replicas),
            changes=replay.changes,
            ttft_p50_s=p50,
            ttft_p95_s=p95,
            ttft_p99_s=p99,
            in_time=float(np.mean(waits <= target_ttft_s)),
        )


@app.command()
def autoscale(
    *,
    measured: Annotated[
        Path | None, typer.Option(help="What `python -m load.engine --json` has written.")
    ] = None,
    step_ms: Annotated[
        float, typer.Option(min=0.001, help="Or: milliseconds of a step by itself,")
    ] = 20.0,
    stream_ms: Annotated[float, typer.Option(min=0, help="what each stream adds to it,")] = 0.5,
    prompt_token_ms: Annotated[
        float, typer.Option(min=0.001, help="and what each prompt token adds.")
    ] = 0.25,
    peak_rate: Annotated[
        float, typer.Option(min=0.01, help="Requests per second at the day's peak.")
    ] = 6.0,
    hours: Annotated[float, typer.Option(min=0.1, help="Hours that the day takes.")] = 24.0,
    slots: Annotated[int, typer.Option(min=1, help="Slots of a replica.")] = 16,
    min_replicas: Annotated[int, typer.Option(min=0, help="0 lets an idle model go.")] = 0,
    max_replicas: Annotated[int, typer.Option(min=1, help="Most replicas.")] = 16,
    start_s: Annotated[float, typer.Option(min=0, help="Seconds that a replica starts in.")] = 60.0,
    target_ttft_s: Annotated[
        float, typer.Option(min=0.01, help="Seconds to a first token that are in time.")
    ] = 2.0,
    utilisation: Annotated[
        float, typer.Option(min=0.05, max=1, help="Share of the slots to fill, for both policies.")
    ] = 0.8,
    price: Annotated[float, typer.Option(min=0, help="Of a replica for an hour.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Chooses who arrives when.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw it here.")] = None,
    json: options.JsonFile = None,
) -> None:
    """Replay a day against both policies in a simulation, and compare replicas, TTFT and cost.

    Both are Serve's to call: Parley's `ScaleByWork`, and the policy that Serve has by default, which
    here is told of each stream as a request; what it is told of Parley's generators in reality, where
    a call carries many streams, would be no use to it. Bounds, delays and targets are the same.
    """
    times = (
        StepTimes.read(measured)
        if measured is not None
        else StepTimes(step_ms / 1e3, stream_ms / 1e3, prompt_token_ms / 1e3)
    )
    day = Day(seconds=3600.0 * hours, peak_rate=peak_rate, seed=seed)
    found = replays(
        times,
        day,
        slots=slots,
        bounds=(min_replicas, max_replicas),
        start_s=start_s,
        target_ttft_s=target_ttft_s,
        utilisation=utilisation,
    )
    outcomes = [
        Outcome.of(name, replay, price=price, target_ttft_s=target_ttft_s)
        for name, replay in found.items()
    ]
    console.print(_table(outcomes, len(next(iter(found.values())).requests)))
    if plot is not None:
        _save_plot(plot, found, day, target_ttft_s)
    if json is not None:
        write_json(
            json,
            {
                "step_times_s": dataclasses.asdict(times),
                "day": dataclasses.asdict(day),
                "slots": slots,
                "start_s": start_s,
                "target_ttft_s": target_ttft_s,
                "utilisation": utilisation,
                "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
            },
        )


def replays(
    times: StepTimes,
    day: Day,
    *,
    slots: int,
    bounds: tuple[int, int],
    start_s: float,
    target_ttft_s: float,
    utilisation: float,
) -> dict[str, Replay]:
    """Replay the same day under both policies, with what `deploy/local.yaml` says of delays.

    Args:
        times: what a replica's steps take.
        day: the day.
        slots: slots of a replica.
        bounds: fewest and most replicas.
        start_s: seconds that a replica starts in.
        target_ttft_s: seconds to a first token that are aimed at.
        utilisation: share of the slots to fill.
    """
    settings = GeneratorSettings()

    def config() -> AutoscalingConfig:
        return AutoscalingConfig(
            min_replicas=bounds[0],
            max_replicas=bounds[1],
            target_ongoing_requests=slots * utilisation,
            upscale_delay_s=10.0,
            downscale_delay_s=300.0,
            downscale_to_zero_delay_s=900.0,
        )

    policies: dict[str, Policy] = {
        _OURS: ScaleByWork(target_ttft_s=target_ttft_s, utilisation=utilisation),
        _RAYS: replica_queue_length_autoscaling_policy,
    }
    found = {}
    for name, policy in policies.items():
        typer.echo(f"a day under {name} …", err=True)
        fleet = Fleet(
            policy,
            config(),
            lambda: SimulatedReplica(
                times, slots=slots, prompt_slowdown=settings.prompt_slowdown, max_tokens=512
            ),
            start_s=start_s,
        )
        found[name] = fleet.replay(day.requests(), day.seconds)
    return found


def _waits(replay: Replay) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(
        [
            request.first_at - request.due_at
            for request in replay.requests
            if request.first_at is not None
        ]
    )


def _table(outcomes: list[Outcome], requests: int) -> Table:
    table = Table("", title=f"a day of {requests:,} requests", title_justify="left")
    for outcome in outcomes:
        table.add_column(outcome.policy, justify="right")

    def add(name: str, read: str, show: str) -> None:
        table.add_row(name, *(format(getattr(outcome, read), show) for outcome in outcomes))

    add("replica-hours", "replica_hours", ",.1f")
    add("cost", "cost", ",.1f")
    add("most replicas", "most", "d")
    add("changes", "changes", "d")
    add("TTFT p50, s", "ttft_p50_s", ".2f")
    add("TTFT p95, s", "ttft_p95_s", ".2f")
    add("TTFT p99, s", "ttft_p99_s", ".2f")
    add("in time", "in_time", ".2%")
    return table


def _save_plot(path: Path, found: Mapping[str, Replay], day: Day, target_ttft_s: float) -> None:
    """Draw the load, replicas, TTFT and cost over the day."""
    figure = Figure(figsize=(10, 10), layout="constrained")
    load, replicas, ttft, cost = figure.subplots(4, 1, sharex=True)
    hour_s = day.seconds / 24.0
    hours = np.linspace(0.0, 24.0, 24 * 12)
    load.plot(hours, [day.rate(hour) for hour in hours], color="gray")
    load.set_ylabel("requests/s")
    for name, replay in found.items():
        at = np.array(replay.at) / hour_s
        (line,) = replicas.step(at, replay.replicas, where="post", label=name)
        noted = np.array(replay.replicas, float)
        spent = np.cumsum(noted) * (replay.at[1] - replay.at[0] if len(at) > 1 else 0.0) / 3600.0
        cost.plot(at, spent, color=line.get_color(), label=name)
        due = np.array([one.due_at for one in replay.requests if one.first_at is not None])
        places = np.floor(due / day.seconds * 24 * 6).astype(int)
        waits = _waits(replay)
        filled = np.unique(places)
        p95 = [np.percentile(waits[places == place], 95) for place in filled]
        ttft.plot(filled / 6.0, p95, ".-", color=line.get_color(), label=name)
    replicas.set_ylabel("replicas")
    ttft.axhline(target_ttft_s, color="gray", linestyle="--", label="target")
    ttft.set_ylabel("TTFT p95, s, by ten minutes")
    ttft.set_yscale("log")
    cost.set_ylabel("replica-hours")
    cost.set_xlabel("hour of the day")
    for axes in (replicas, ttft, cost):
        axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    options.run(app)
