"""`python -m load.scaling`: a real cluster that goes from one generator to two, and back."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass
from typing import Annotated

import typer
import uvloop
from rich.table import Table

from load import chats
from load import command_line as options
from load.http_client import Address
from load.measurements import Level, Percentiles
from load.own_cluster import OwnCluster, own_cluster
from load.report import console, write_json
from load.supply import Plan
from load.verdicts import Verdict, verdict_table
from load.workload import Workload
from serve_app.errors import ConfigError

__all__ = ["Phase", "app", "judge"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

_RUNNING = "RUNNING"
_LOOK_S = 1.0
_SLOTS = 4
# Serve's own defaults wait for minutes, which suits a day and not a demonstration.
_SCALING = {
    "max_replicas": 2,
    "upscale_delay_s": 3,
    "downscale_delay_s": 15,
    "downscale_to_zero_delay_s": 15,
    "look_back_period_s": 10,
}


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run, which ends when Serve has as many replicas as it waits for.

    Attributes:
        name: what is asked for meanwhile.
        replicas: replicas that it waits for.
        took_s: seconds until they were there; None if they never were.
        replies: replies that came whole.
        errors: those that didn't, by what went wrong.
        ttft_ms: from the question to the first of its reply; None where nobody asked.
    """

    name: str
    replicas: int
    took_s: float | None
    replies: int
    errors: dict[str, int]
    ttft_ms: Percentiles | None


@app.command()
def scaling(
    *,
    streams: Annotated[int, typer.Option(min=4, help="Streams at once under load.")] = 8,
    output_tokens: options.OutputTokens = 64,
    patience: Annotated[
        float, typer.Option(min=10, help="Most seconds to wait for replicas.")
    ] = 150,
    to_zero: Annotated[
        bool, typer.Option("--to-zero", help="Then let the idle model go, and ask once more.")
    ] = False,
    seed: options.Seed = None,
    json: options.JsonFile = None,
) -> None:
    """Load a cluster of its own until a second generator runs, then leave it until one is left.

    One conversation goes on all the time, so that a reply that a leaving replica broke off would show.
    Prints each phase and a verdict on each promise. The exit code is 1 if one is broken.
    """
    settings = {
        "PARLEY_GENERATOR_SLOTS": str(_SLOTS),
        "PARLEY_INGRESS_ADMISSION_TIMEOUT_S": str(patience),
    }
    lowest = {"min_replicas": 0, "initial_replicas": 1} if to_zero else {"min_replicas": 1}
    workload = Workload(turns=2, output_tokens=output_tokens, seed=options.fresh_seed(seed))
    typer.echo("starting a cluster …", err=True)
    with own_cluster(settings, generator_scaling=_SCALING | lowest) as cluster:

        async def run() -> list[Phase]:
            address = Address.of(cluster.url)
            target = chats.Target(address=address, model=await chats.first_model(address, None))
            script = [(f"{streams} streams", streams, 2), ("one stream", 1, 1)]
            if to_zero:
                script += [("nobody", 0, 0), ("one stream again", 1, 1)]
            phases = []
            for name, asking, replicas in script:
                typer.echo(f"{name}, until there are {replicas} …", err=True)
                phases.append(
                    await _phase(cluster, target, workload, name, asking, replicas, patience)
                )
            return phases

        phases = uvloop.run(run())
    verdicts = judge(phases)
    console.print(_table(phases), verdict_table(verdicts))
    if json is not None:
        write_json(
            json,
            {
                "slots": _SLOTS,
                "phases": [dataclasses.asdict(phase) for phase in phases],
                "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
            },
        )
    if not all(verdict.held for verdict in verdicts):
        raise typer.Exit(1)


def judge(phases: list[Phase]) -> list[Verdict]:
    """Return a verdict on each phase's replicas, and on the replies of all."""
    failed = sum(sum(phase.errors.values()) for phase in phases)
    replies = sum(phase.replies for phase in phases)
    return [
        *(
            Verdict(
                f"with {phase.name} there are {phase.replicas}",
                "never" if phase.took_s is None else f"after {phase.took_s:.0f} s",
                held=phase.took_s is not None,
            )
            for phase in phases
        ),
        Verdict(
            "no reply fails",
            f"{failed} of {replies + failed} failed",
            held=failed == 0 and replies > 0,
        ),
    ]


async def _phase(
    cluster: OwnCluster,
    target: chats.Target,
    workload: Workload,
    name: str,
    asking: int,
    replicas: int,
    patience_s: float,
) -> Phase:
    """Ask from so many clients at once until so many replicas run, or patience ends."""
    began = time.monotonic()
    levels: list[Level] = []
    enough = asyncio.Event()

    async def ask() -> None:
        # In rounds: each ends what it has begun, so that no reply is broken off by this client.
        while not enough.is_set():
            levels.extend(await chats.measure(target, workload, Plan((asking,), rounds=1)))

    talking = asyncio.create_task(ask()) if asking else None
    took_s: float | None = None
    while time.monotonic() - began < patience_s:
        if talking is not None and talking.done():
            break  # it has failed; what it raised comes below
        try:
            found = await asyncio.to_thread(cluster.replicas, "Generator")
        except ConfigError:
            found = {}  # the dashboard is slow while replicas start
        settled = set(found) <= {_RUNNING} and (levels or not asking)
        if settled and found.get(_RUNNING, 0) == replicas:
            took_s = time.monotonic() - began
            break
        await asyncio.sleep(_LOOK_S)
    enough.set()
    if talking is not None:
        await talking
    errors: dict[str, int] = {}
    for level in levels:
        for kind, count in level.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    return Phase(
        name=name,
        replicas=replicas,
        took_s=took_s,
        replies=sum(level.replies for level in levels),
        errors=errors,
        ttft_ms=levels[-1].ttft_ms if levels else None,
    )


def _table(phases: list[Phase]) -> Table:
    table = Table("asked for by", title="replicas of the generator", title_justify="left")
    for heading in ("replicas", "after, s", "replies", "errors", "TTFT p50, ms", "TTFT p95, ms"):
        table.add_column(heading, justify="right")
    for phase in phases:
        ttft = phase.ttft_ms
        table.add_row(
            phase.name,
            f"{phase.replicas}",
            "–" if phase.took_s is None else f"{phase.took_s:.0f}",
            f"{phase.replies}",
            f"{sum(phase.errors.values())}",
            "–" if ttft is None else f"{ttft.p50:.0f}",
            "–" if ttft is None else f"{ttft.p95:.0f}",
        )
    return table


if __name__ == "__main__":
    options.run(app)
