"""`python -m load.compare`: Parley beside llama.cpp's server, in one run, as ratios."""

from __future__ import annotations

import dataclasses
import os
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.table import Table

from load import chats
from load import command_line as options
from load.bare_engine import engine_settings
from load.comparison_plot import save_plot
from load.http_client import Address
from load.llama_server import LlamaCpp, llama_server
from load.measurements import Level
from load.own_cluster import own_cluster
from load.report import console, write_json
from load.supply import Plan
from load.workload import Workload
from serve_app.errors import ConfigError
from serve_app.settings import parley_home

__all__ = ["WORKLOADS", "Ratio", "app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

WORKLOADS = {
    # Chats of three turns behind a system prompt that all share.
    "chats": Workload(turns=3, system_tokens=110, prompt_tokens=40, output_tokens=64),
    # Long prompts that share nothing.
    "prompts": Workload(turns=1, system_tokens=0, prompt_tokens=512, output_tokens=128),
}
# Tokens of one sequence that either server has room for.
_CONTEXT = 1536


@dataclass(frozen=True, slots=True)
class Ratio:
    """Parley's figure divided by the other's, round by round, which have the machine's mood in common."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Divide figures of the same rounds."""
        each = [our / their for our, their in zip(ours, theirs, strict=True)]
        return cls(statistics.median(each), min(each), max(each))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}–{self.most:.2f})"


# What is compared of a level: how it is called, and where it is.
_FIGURES: dict[str, Callable[[Level], float]] = {
    "output tok/s": lambda level: level.tokens_per_s,
    "TTFT p50, ms": lambda level: level.ttft_ms.p50 if level.ttft_ms else float("nan"),
    "TTFT p95, ms": lambda level: level.ttft_ms.p95 if level.ttft_ms else float("nan"),
    "inter-token p50, ms": lambda level: (
        level.inter_token_ms.p50 if level.inter_token_ms else float("nan")
    ),
    "inter-token p99, ms": lambda level: (
        level.inter_token_ms.p99 if level.inter_token_ms else float("nan")
    ),
}


@app.command()
def compare(
    *,
    workload: Annotated[
        str, typer.Option(help=f"What is said: {', '.join(WORKLOADS)}, or several with commas.")
    ] = ",".join(WORKLOADS),
    precision: options.Precision = None,
    kind: Annotated[str, typer.Option(help="llama.cpp's kind of weights.")] = "Q8_0",
    concurrency: options.Concurrency = "1,8,32",
    times: Annotated[int, typer.Option(min=1, help="How often each server is measured.")] = 3,
    rounds: options.Rounds = 2,
    build: Annotated[bool, typer.Option(help="Compile llama-server if it isn't there.")] = False,
    program: Annotated[
        Path | None, typer.Option(help="A llama-server; llama-quantize is looked for beside it.")
    ] = None,
    llama_options: Annotated[
        str, typer.Option(help="Further options of llama-server's, as in a shell.")
    ] = "",
    report: Annotated[Path, typer.Option(help="Folder for the report and its plot.")] = Path(
        "reports/compare"
    ),
) -> None:
    """Run both servers one after the other, several times, with the same model, workload and client.

    Prints the ratios of each round's figures: median, least and most. Above 1, Parley has more. The
    report holds every figure, and a plot. The exit code is 1 if a reply failed.
    """
    names, levels = _names(workload), options.numbers(concurrency)
    served = engine_settings(model={"precision": precision}).model.precision
    further = shlex.split(llama_options)
    peer = LlamaCpp(parley_home() / "peers" / "llama.cpp", program)
    peer.require(build=build)
    measured: dict[str, dict[str, list[list[Level]]]] = {}
    for name in names:
        servers = measured[name] = {"Parley": [], "llama-server": []}
        for number in range(times):
            order = list(servers) if number % 2 == 0 else list(reversed(servers))
            seed = options.fresh_seed(None)
            for server in order:
                typer.echo(f"{name}, time {number + 1} of {times}: {server} …", err=True)
                asked = dataclasses.replace(WORKLOADS[name], seed=seed)
                plan = Plan(levels, rounds)
                servers[server].append(
                    _parley(asked, plan, served)
                    if server == "Parley"
                    else _llama(peer, kind, asked, plan, further)
                )
        console.print(_table(name, levels, servers))
    report.mkdir(parents=True, exist_ok=True)
    write_json(report / "compare.json", _as_json(measured, levels, kind, further, served))
    save_plot(report / "compare.png", measured, levels)
    typer.echo(f"The report is in {report}.", err=True)
    everything = [
        level
        for servers in measured.values()
        for runs in servers.values()
        for run in runs
        for level in run
    ]
    if any(level.errors for level in everything):
        raise typer.Exit(1)


def _names(workloads: str) -> list[str]:
    names = workloads.split(",")
    for name in names:
        if name not in WORKLOADS:
            msg = f"No workload is called {name!r}; choose among {', '.join(WORKLOADS)}."
            raise ConfigError(msg)
    return names


def _parley(workload: Workload, plan: Plan, precision: str) -> list[Level]:
    settings = {
        "PARLEY_MODEL_PRECISION": precision,
        "PARLEY_GENERATOR_SLOTS": str(max(plan.concurrency)),
        "PARLEY_GENERATOR_MAX_LEN": str(_CONTEXT),
        "PARLEY_GENERATOR_MAX_CACHED_TOKENS": str(_CONTEXT * max(plan.concurrency)),
    }
    with own_cluster(settings) as cluster:
        return _measure(cluster.url, workload, plan)


def _llama(
    peer: LlamaCpp, kind: str, workload: Workload, plan: Plan, further: Sequence[str]
) -> list[Level]:
    streams = max(plan.concurrency)
    with llama_server(
        peer.server,
        peer.weights(kind),
        streams=streams,
        context=_CONTEXT * streams,
        threads=len(os.sched_getaffinity(0)),
        further=further,
    ) as url:
        return _measure(url, workload, plan)


def _measure(url: str, workload: Workload, plan: Plan) -> list[Level]:
    async def measure() -> list[Level]:
        address = Address.of(url)
        target = chats.Target(address=address, model=await chats.first_model(address, None))
        return await chats.measure(target, workload, plan)

    return uvloop.run(measure())


def _table(
    name: str, concurrency: Sequence[int], servers: Mapping[str, Sequence[Sequence[Level]]]
) -> Table:
    table = Table("concurrency", title=name, title_justify="left")
    for streams in concurrency:
        table.add_column(str(streams), justify="right")
    for figure, read in _FIGURES.items():
        for server, runs in servers.items():
            medians = [statistics.median(map(read, level)) for level in zip(*runs, strict=True)]
            table.add_row(f"{figure}, {server}", *(f"{median:.1f}" for median in medians))
        table.add_row("  ratio", *map(str, _ratios(servers, read)))
    failed = {
        server: [
            sum(sum(one.errors.values()) for one in level) for level in zip(*runs, strict=True)
        ]
        for server, runs in servers.items()
    }
    for server, counts in failed.items():
        table.add_row(f"errors, {server}", *map(str, counts))
    return table


def _ratios(
    servers: Mapping[str, Sequence[Sequence[Level]]], read: Callable[[Level], float]
) -> list[Ratio]:
    """Return a ratio for each level of concurrency."""
    ours, theirs = (list(zip(*runs, strict=True)) for runs in servers.values())
    return [
        Ratio.of([*map(read, our)], [*map(read, their)])
        for our, their in zip(ours, theirs, strict=True)
    ]


def _as_json(
    measured: Mapping[str, Mapping[str, Sequence[Sequence[Level]]]],
    concurrency: Sequence[int],
    kind: str,
    further: Sequence[str],
    precision: str,
) -> dict[str, Any]:
    return {
        "llama_kind": kind,
        "llama_options": list(further),
        "parley_precision": precision,
        "concurrency": list(concurrency),
        "workloads": {
            name: {
                "ratios": {
                    figure: [dataclasses.asdict(ratio) for ratio in _ratios(servers, read)]
                    for figure, read in _FIGURES.items()
                },
                "levels": {
                    server: [[dataclasses.asdict(level) for level in run] for run in runs]
                    for server, runs in servers.items()
                },
            }
            for name, servers in measured.items()
        },
    }


if __name__ == "__main__":
    options.run(app)
