"""`python -m load.overload`: what becomes of a service that is asked for three times what it can do."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
import uvloop
from rich.table import Table

from load import chats
from load import command_line as options
from load.arrivals import OpenLevel
from load.http_client import Address
from load.open_loop import measure_rate, open_table, prompts_for
from load.own_cluster import own_cluster
from load.prompts import PromptShape
from load.punctual import punctual
from load.report import console, write_json
from load.resources import Resources
from load.supply import Plan
from load.verdicts import Verdict, verdict_table
from load.workload import Workload

__all__ = ["app", "judge"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

# Of what the service can carry. The last one is what is promised about.
_FACTORS = (0.5, 1.0, 2.0, 3.0)
_GOODPUT_SHARE = 0.9
_REFUSAL_MS = 100.0
_MEMORY_SHARE, _MEMORY_LEAST = 0.05, 32 << 20
# A client that is later than this measures itself.
_LATE_MS = 20.0


@app.command()
def overload(
    *,
    slots: Annotated[int, typer.Option(min=1, help="Slots of the engine.")] = 8,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait for a slot.")] = 8,
    seconds: Annotated[float, typer.Option(min=8, help="Seconds of each rate.")] = 40.0,
    prompt_tokens: Annotated[int, typer.Option(min=48, help="Tokens of a prompt, exactly.")] = 160,
    output_tokens: options.OutputTokens = 64,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Let the backend that computes nothing answer.")
    ] = False,
    seed: options.Seed = None,
    json: options.JsonFile = None,
) -> None:
    """Find what a cluster of its own can carry, then ask for up to three times as much.

    Prints each rate's figures and a verdict on each promise: at three times what it can carry,
    goodput is within 10 % of its best, refusals are fast and say when to come back, and memory is
    where it was. The exit code is 1 if one is broken.
    """
    longest = prompt_tokens + output_tokens + 16
    values: dict[str, object] = {
        "GENERATOR_SLOTS": slots,
        "GENERATOR_MAX_QUEUED": queue,
        "GENERATOR_MAX_LEN": longest,
        "GENERATOR_MAX_CACHED_TOKENS": longest * slots,
    }
    if simulated:
        values |= {"GENERATOR_BACKEND": "simulated", "MODEL_NAME": "simulated"}
    chosen = options.fresh_seed(seed)
    shape = PromptShape(prompt_tokens, shared=prompt_tokens // 2, groups=4)
    typer.echo("starting a cluster …", err=True)
    with own_cluster({f"PARLEY_{name}": str(value) for name, value in values.items()}) as cluster:
        resources = Resources(cluster)

        async def measure() -> tuple[float, list[OpenLevel], list[float]]:
            address = Address.of(cluster.url)
            target = chats.Target(address=address, model=await chats.first_model(address, None))
            carried = await _carried(target, slots, output_tokens, seconds, chosen)
            async with prompts_for(target, shape, seed=chosen) as prompts:
                levels, memory = [], []
                for number, factor in enumerate(_FACTORS):
                    typer.echo(f"{factor:g} times {carried:.2f} requests/s …", err=True)
                    level = await measure_rate(
                        target,
                        prompts,
                        rate=factor * carried,
                        seconds=seconds,
                        output_tokens=output_tokens,
                        ttft_s=None,
                        seed=chosen + number,
                    )
                    levels.append(level)
                    # Not meanwhile: a look takes this process long enough to send late.
                    memory.append(float(sum(resources.look().memory.values())))
            return carried, levels, memory

        carried, levels, memory = uvloop.run(measure())
    verdicts = judge(levels, memory)
    title = f"overload: {slots} slots carry {carried:.2f} requests/s"
    console.print(open_table(title, levels), _memory_table(levels, memory), verdict_table(verdicts))
    if json is not None:
        write_json(
            json,
            {
                "slots": slots,
                "queue": queue,
                "carried_requests_per_s": carried,
                "factors": list(_FACTORS),
                "levels": [dataclasses.asdict(level) for level in levels],
                "memory_bytes": memory,
                "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
            },
        )
    if not all(verdict.held for verdict in verdicts):
        raise typer.Exit(1)


def judge(levels: list[OpenLevel], memory: list[float]) -> list[Verdict]:
    """Return a verdict on each promise about the last of some rates.

    Args:
        levels: what came of each rate.
        memory: bytes that all processes took after each.
    """
    last, best = levels[-1], max(level.goodput for level in levels)
    share = last.goodput / best if best else 0.0
    refusal = last.refusal_ms.p99 if last.refusal_ms else None
    late = last.late_ms.p99 if last.late_ms else None
    before, after = memory[-2:]
    allowed = max(_MEMORY_SHARE * before, _MEMORY_LEAST)
    failed = sum(sum(level.errors.values()) for level in levels)
    odd = sum(level.other_length for level in levels)
    return [
        Verdict(
            f"goodput is at least {_GOODPUT_SHARE:.0%} of its best",
            f"{last.goodput:.1f} of {best:.1f} tok/s, {share:.0%}",
            share >= _GOODPUT_SHARE,
        ),
        Verdict(
            f"refusals take less than {_REFUSAL_MS:.0f} ms, p99",
            "nothing was refused" if refusal is None else f"{refusal:.0f} ms",
            refusal is not None and refusal < _REFUSAL_MS,
        ),
        Verdict(
            "refusals say when to come back",
            f"{last.unsaid} of {last.refusals} don't",
            last.refusals > 0 and last.unsaid == 0,
        ),
        Verdict(
            "memory stays flat",
            f"{before / 1e6:,.0f} → {after / 1e6:,.0f} MB, up to {allowed / 1e6:,.0f} more allowed",
            after - before <= allowed,
        ),
        Verdict("nothing fails but by refusal", f"{failed} failed", failed == 0),
        Verdict(
            f"this client sends less than {_LATE_MS:.0f} ms late, p99",
            "nothing was sent" if late is None else f"{late:.1f} ms",
            late is not None and late < _LATE_MS,
        ),
        Verdict("prompts have the tokens asked for", f"{odd} have not", odd == 0),
    ]


async def _carried(
    target: chats.Target, slots: int, output_tokens: int, seconds: float, seed: int
) -> float:
    """Return the requests per second that keep every slot busy: what a closed loop gets answered."""
    workload = Workload(turns=1, output_tokens=output_tokens, seed=seed)
    options.say_level("what it can carry", slots)
    with punctual():
        (level,) = await chats.measure(target, workload, Plan((slots,), duration_s=seconds / 2))
    return level.requests_per_s


def _memory_table(levels: list[OpenLevel], memory: list[float]) -> Table:
    table = Table("after requests/s", title="memory, MB", title_justify="left")
    for level in levels:
        table.add_column(f"{level.rate:.2f}", justify="right")
    table.add_row("all processes", *(f"{taken / 1e6:,.0f}" for taken in memory))
    return table


if __name__ == "__main__":
    options.run(app)
