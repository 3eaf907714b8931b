"""`python -m load.serving`: the serving path alone, around a model that costs nothing."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
import uvloop
from rich.table import Table

from load import chats
from load import command_line as options
from load.http_client import Address
from load.measurements import Level
from load.own_cluster import own_cluster
from load.processor_time import ProcessorTime
from load.report import console, http_table, write_json
from load.supply import Plan
from load.workload import Workload

__all__ = ["app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

_MODEL = "simulated"
# Below this share of a second a process isn't worth a row.
_LEAST_CPUS = 0.005


@app.command()
def serving(
    *,
    concurrency: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 256,
    system_tokens: options.SystemTokens = 110,
    prompt_tokens: options.PromptTokens = 40,
    output_tokens: options.OutputTokens = 512,
    rounds: options.Rounds = 2,
    seed: options.Seed = None,
    json: options.JsonFile = None,
) -> None:
    """Measure everything but the model: HTTP, routing, streams, scheduling, sampling.

    Starts a cluster of its own whose generator has the simulated backend, holds conversations of one
    turn, prints tokens and events per second and where the processors' time went, and ends it.
    """
    workload = Workload(
        turns=1,
        system_tokens=system_tokens,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        seed=options.fresh_seed(seed),
    )
    typer.echo("starting a cluster with the simulated backend …", err=True)
    with own_cluster(_settings(concurrency, workload)) as cluster:
        time = ProcessorTime(cluster.run_id)
        target = chats.Target(address=Address.of(cluster.url), model=_MODEL)

        async def measure() -> tuple[list[Level], dict[str, float]]:
            options.say_level("the serving path", concurrency)
            plan = Plan((concurrency,), rounds)
            levels = await chats.measure(target, workload, plan, on_warm=time.begin)
            return levels, time.spent()

        levels, spent = uvloop.run(measure())
    (level,) = levels
    console.print(http_table(levels), _time_table(level, spent))
    if json is not None:
        write_json(
            json,
            {
                "workload": dataclasses.asdict(workload),
                "http": dataclasses.asdict(level),
                "events_per_s": level.arrivals / level.wall_s,
                "processor_s": spent,
            },
        )
    if level.errors:
        raise typer.Exit(1)


def _settings(concurrency: int, workload: Workload) -> dict[str, str]:
    """Return settings with which all streams run at once."""
    # Words are counted, not tokens: leave room.
    longest = 2 * (workload.system_tokens + workload.prompt_tokens) + workload.output_tokens + 64
    values = {
        "MODEL_NAME": _MODEL,
        "GENERATOR_BACKEND": "simulated",
        "GENERATOR_SLOTS": concurrency,
        "GENERATOR_MAX_LEN": longest,
        "GENERATOR_MAX_CACHED_TOKENS": longest * concurrency,
        "INGRESS_MAX_CONCURRENT": 2 * concurrency,
    }
    return {f"PARLEY_{name}": str(value) for name, value in values.items()}


def _time_table(level: Level, spent: dict[str, float]) -> Table:
    table = Table("process", title="processors' time", title_justify="left")
    table.add_column("CPUs", justify="right")
    table.add_column("µs per token", justify="right")
    tokens = max(level.tokens.completion, 1)

    def add(name: str, seconds: float) -> None:
        table.add_row(name, f"{seconds / level.wall_s:.2f}", f"{seconds / tokens * 1e6:.1f}")

    for name, seconds in spent.items():
        if seconds / level.wall_s >= _LEAST_CPUS:
            add(name, seconds)
    table.add_section()
    add("all", sum(spent.values()))
    table.caption = (
        f"{level.tokens_per_s:,.0f} tokens/s, {level.arrivals / level.wall_s:,.0f} events/s"
    )
    table.caption_justify = "left"
    return table


if __name__ == "__main__":
    options.run(app)
