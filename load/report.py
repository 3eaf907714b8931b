"""What the commands print: one column per level of concurrency, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from load.bare_engine import BareRun
from load.engine_chats import EngineLevel
from load.floor import Floor
from load.measurements import Level, Percentiles

__all__ = ["console", "engine_json", "engine_table", "http_table", "ratio_table", "write_json"]

console = Console(highlight=False, soft_wrap=True)


def http_table(levels: Sequence[Level]) -> Table:
    """Return the table of a server's levels."""
    table = _table("through HTTP", levels)
    _add_level_rows(table, levels)
    return table


def engine_table(run: BareRun) -> Table:
    """Return the table of the bare engine's levels."""
    levels = run.levels
    table = _table(
        f"bare engine: {run.model}, {run.threads} threads", [one.level for one in levels]
    )
    _add_level_rows(table, [one.level for one in levels])
    floors = [Floor.of(one.work, run.demand, run.machine) for one in levels]

    def add(name: str, show: Callable[[EngineLevel, Floor], str]) -> None:
        table.add_row(name, *map(show, levels, floors))

    table.add_section()
    add("steps", lambda one, _: f"{one.steps}")
    add("step, ms", lambda one, _: _ratio(one.busy_s * 1e3, one.steps))
    add("  tokens guessed", lambda one, _: _ratio(one.drafted, one.steps))
    add("  of them right", lambda one, _: _share(one.draft_hits, one.drafted))
    add("  runtime, decode alone", lambda one, _: _share(one.work.decode_s, one.busy_s))
    add("  runtime, with prompts", lambda one, _: _share(one.work.mixed_s, one.busy_s))
    add("  K/V copies", lambda one, _: _share(one.work.copy_s, one.busy_s))
    add("  outside the runtime", lambda one, _: _share(one.outside_s, one.busy_s))
    table.add_section()
    add("decode alone, ms/step", lambda one, _: _ratio(one.work.decode_s * 1e3, one.work.decodes))
    add("  floor", lambda one, floor: _ratio(floor.decode_s * 1e3, one.work.decodes))
    add("  to read", lambda one, floor: _ratio(floor.decode_read_s * 1e3, one.work.decodes))
    add("  to compute", lambda one, floor: _ratio(floor.decode_compute_s * 1e3, one.work.decodes))
    table.add_section()
    add("with prompts, ms/step", lambda one, _: _ratio(one.work.mixed_s * 1e3, one.work.mixed))
    add("  floor", lambda one, floor: _ratio(floor.mixed_s * 1e3, one.work.mixed))
    add("  prompt tokens", lambda one, _: _ratio(one.work.prefilled, one.work.mixed))
    add("  decoding", lambda one, _: _ratio(one.work.mixed_decoded, one.work.mixed))
    machine, demand = run.machine, run.demand
    table.caption = (
        f"This machine, {machine.threads} threads: {machine.read_bytes_per_s / 1e9:.1f} GB/s read, "
        f"{machine.ops_per_s / 1e9:.0f} billion operations/s ({machine.arithmetic}). A step reads "
        f"{demand.weight_bytes / 1e6:.0f} MB of weights and {demand.token_bytes / 1e3:.1f} kB per "
        f"token of the past; a token takes "
        f"{(demand.token_flops + demand.head_flops) / 1e9:.3f} billion operations and "
        f"{demand.past_flops / 1e3:.0f} thousand per token of the past."
    )
    table.caption_justify = "left"
    return table


def ratio_table(http: Sequence[Level], engine: Sequence[EngineLevel]) -> Table:
    """Return how much of the bare engine's output arrives through HTTP."""
    table = _table("through HTTP / bare engine", http)
    table.add_row(
        "output tok/s",
        *(
            _share(through.tokens_per_s, bare.level.tokens_per_s)
            for through, bare in zip(http, engine, strict=True)
        ),
    )
    return table


def engine_json(run: BareRun) -> dict[str, Any]:
    """Return what came of the bare engine, with the floors, for JSON."""
    levels = [
        {
            **dataclasses.asdict(one),
            "outside_s": one.outside_s,
            "floor": dataclasses.asdict(Floor.of(one.work, run.demand, run.machine)),
        }
        for one in run.levels
    ]
    return {**dataclasses.asdict(run), "levels": levels}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a report, dataclasses and all."""
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def _table(title: str, levels: Sequence[Level]) -> Table:
    table = Table("concurrency", title=title, title_justify="left")
    for level in levels:
        table.add_column(str(level.concurrency), justify="right")
    return table


def _add_level_rows(table: Table, levels: Sequence[Level]) -> None:
    def add(name: str, show: Callable[[Level], str]) -> None:
        table.add_row(name, *map(show, levels))

    add("output tok/s", lambda level: f"{level.tokens_per_s:.1f}")
    add("requests/s", lambda level: f"{level.requests_per_s:.2f}")
    _add_percentiles(table, "TTFT, ms", [level.ttft_ms for level in levels])
    _add_percentiles(table, "inter-token, ms", [level.inter_token_ms for level in levels])
    table.add_section()
    add("conversations", lambda level: f"{level.conversations}")
    add("replies", lambda level: f"{level.replies}")
    add("errors", lambda level: f"{sum(level.errors.values())}")
    for kind in sorted({kind for level in levels for kind in level.errors}):
        table.add_row(f"  {kind}", *(f"{level.errors.get(kind, 0)}" for level in levels))
    add("prompt tokens", lambda level: f"{level.tokens.prompt}")
    add("  from a cache", lambda level: _share(level.tokens.cached, level.tokens.prompt))
    add("  of earlier turns' own", lambda level: _share(level.tokens.spared, level.tokens.held))
    add("completion tokens", lambda level: f"{level.tokens.completion}")
    add("arrivals", lambda level: f"{level.arrivals}")
    if any(level.uncounted for level in levels):
        add("replies without usage", lambda level: f"{level.uncounted}")
    add("wall time, s", lambda level: f"{level.wall_s:.1f}")
    add("this process, CPUs", lambda level: f"{level.client_cpu:.3f}")


def _add_percentiles(table: Table, name: str, columns: Sequence[Percentiles | None]) -> None:
    for percentile in ("p50", "p95", "p99"):
        table.add_row(
            f"{name} {percentile}",
            *("–" if one is None else f"{getattr(one, percentile):.1f}" for one in columns),
        )


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "–"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"
