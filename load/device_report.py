"""What `load.engine` prints of a device: one column per batch size, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rich.table import Table

from load.device_engine import DeviceLevel, DeviceRun
from load.floor import Floor

__all__ = ["device_json", "device_table"]


def device_table(run: DeviceRun) -> Table:
    """Return the table of a device's batch sizes, with each step's floor."""
    table = Table(
        "sequences in a step",
        title=f"engine on {run.device.name}: {run.model}, {run.slots} slots of {run.slot_tokens}",
        title_justify="left",
    )
    for level in run.levels:
        table.add_column(str(level.batch), justify="right")
    floors = [_floor(run, level) for level in run.levels]

    def add(name: str, show: Callable[[DeviceLevel, Floor], str]) -> None:
        table.add_row(name, *map(show, run.levels, floors))

    add("output tok/s", lambda one, _: f"{one.batch / one.step_s:.1f}")
    add("step, ms", lambda one, _: _ms(one.step_s))
    add("  runtime alone", lambda one, _: _ms(one.runtime_s))
    add("tokens of the past, each", lambda one, _: f"{one.past:.0f}")
    add("bytes a step, MB", lambda one, _: f"{step_bytes(run, one) / 1e6:.1f}")
    table.add_section()
    add("floor, ms", lambda one, floor: _ms(floor.decode_s / one.work.decodes))
    add("  to read", lambda one, floor: _ms(floor.decode_read_s / one.work.decodes))
    add("  to compute", lambda one, floor: _ms(floor.decode_compute_s / one.work.decodes))
    add("floor / step", lambda one, floor: _share(floor.decode_s, one.work.decode_s))
    add(
        "floor / runtime alone",
        lambda one, floor: _share(floor.decode_s, one.runtime_s * one.work.decodes),
    )
    table.add_section()
    add(
        f"prompt of {run.levels[0].work.prefilled} tokens, ms", lambda one, _: _ms(one.work.mixed_s)
    )
    add("  tok/s", lambda one, _: f"{one.work.prefilled / one.work.mixed_s:.1f}")
    add("  floor, ms", lambda _, floor: _ms(floor.mixed_s))
    add("  floor / prompt", lambda one, floor: _share(floor.mixed_s, one.work.mixed_s))
    table.caption = _caption(run)
    table.caption_justify = "left"
    return table


def device_json(run: DeviceRun) -> dict[str, Any]:
    """Return what came of the device, with the floors, for JSON; `load.capacity` reads it too."""
    levels = [
        {
            **dataclasses.asdict(one),
            "bytes": step_bytes(run, one),
            "floor": dataclasses.asdict(_floor(run, one)),
        }
        for one in run.levels
    ]
    return {**dataclasses.asdict(run), "levels": levels}


def step_bytes(run: DeviceRun, level: DeviceLevel) -> float:
    """Return the bytes of weights and K/V that a step can't do without."""
    return run.demand.weight_bytes + level.batch * level.past * run.demand.token_bytes


def _floor(run: DeviceRun, level: DeviceLevel) -> Floor:
    return Floor.of(level.work, run.demand, run.device)


def _caption(run: DeviceRun) -> str:
    device, demand = run.device, run.demand
    copied = f"{device.copied_bytes_per_s / 1e9:.1f} GB/s in a copy"
    stated = device.stated_bytes_per_s
    memory = f"{stated / 1e9:.1f} GB/s by its driver, {copied}" if stated else copied
    whole = run.slot_tokens * demand.token_bytes
    lines = [
        f"{device.name}: {memory}; {device.ops_per_s / 1e12:.2f} trillion operations/s in products of "
        f"{device.arithmetic}, measured.",
        f"A step reads {demand.weight_bytes / 1e6:.1f} MB of weights and {demand.token_bytes / 1e3:.1f} kB "
        f"per token of the past. The graph attends to whole slots of {whole / 1e6:.1f} MB; the floor "
        "counts what is in them.",
    ]
    if run.streamed_bytes:
        lines.append(
            f"Of the weights, {run.streamed_bytes / 1e6:.1f} MB are read from the host's memory in every "
            "step, which the floor does not count."
        )
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"
