"""`python -m load.startup`: how soon `parley up` answers, and how much memory all of it takes."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import orjson
import typer
import uvloop
from rich.table import Table

from load import chats
from load import command_line as options
from load.bare_engine import engine_settings
from load.http_client import Address, HttpClient, RequestFailed
from load.measurements import Level
from load.memory import Memory
from load.own_cluster import own_cluster
from load.report import console, write_json
from load.supply import Plan
from load.workload import Workload
from serve_app.routing.serving import served_model

__all__ = ["app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

_QUESTION = "What is the capital of France?"
_ANSWER_S = 60.0
_LOOK_S = 0.5


@app.command()
def startup(
    *,
    model: options.Source = None,
    precision: options.Precision = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 32,
    prompt_tokens: options.PromptTokens = 40,
    output_tokens: options.OutputTokens = 128,
    rounds: options.Rounds = 1,
    json: options.JsonFile = None,
) -> None:
    """Time `parley up` with a prepared model to its first answer, and weigh all its processes.

    It runs in a home of its own, as deploy/local.yaml says. The memory is looked at after the first
    answer, and twice a second while that many streams run, each for some rounds. Whatever happens, it is ended. A model
    that isn't prepared yet is prepared first.
    """
    settings = engine_settings(model={"source": model, "precision": precision})
    served = served_model(settings).manifest
    wanted = {
        "PARLEY_MODEL_SOURCE": settings.model.source,
        "PARLEY_MODEL_PRECISION": settings.model.precision,
    }
    typer.echo("starting a cluster …", err=True)
    began = time.perf_counter()
    with own_cluster(wanted, replicas=None) as cluster:
        serving_s = time.perf_counter() - began
        address = Address.of(cluster.url)
        name = uvloop.run(_first_answer(address))
        answered_s = time.perf_counter() - began
        memory = Memory(cluster.processes)
        at_first = memory.look()
        workload = Workload(
            turns=1,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            seed=options.fresh_seed(None),
        )
        target = chats.Target(address=address, model=name)
        options.say_level("memory", streams)
        level = uvloop.run(_under_load(target, workload, Plan((streams,), rounds), memory))
    title = f"{served.name} ({served.precision})"
    console.print(_start_table(title, serving_s, answered_s))
    console.print(_memory_table(streams, at_first, memory.highest))
    if json is not None:
        write_json(
            json,
            {
                "model": served.name,
                "precision": served.precision,
                "serving_s": serving_s,
                "first_answer_s": answered_s,
                "streams": level.concurrency,
                "errors": level.errors,
                "memory_bytes": {"first_answer": at_first, "highest": memory.highest},
                "highest_memory_bytes": sum(memory.highest.values()),
            },
        )
    if level.errors:
        raise typer.Exit(1)


async def _first_answer(address: Address) -> str:
    """Ask the first question there is, and return the name of who answered."""
    model = await chats.first_model(address, None)
    client = HttpClient(address, {})
    question = {
        "model": model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "max_tokens": 16,
    }
    try:
        async with asyncio.timeout(_ANSWER_S):
            response = await client.request("POST", "/chat/completions", orjson.dumps(question))
    except TimeoutError as error:
        msg = f"The first question was not answered in {_ANSWER_S:.0f} s."
        raise RequestFailed("timeout", msg) from error
    finally:
        client.close()
    if response.status != 200:
        msg = f"The first question was refused: {response.body.decode(errors='replace')}"
        raise RequestFailed(str(response.status), msg)
    return model


async def _under_load(
    target: chats.Target, workload: Workload, plan: Plan, memory: Memory
) -> Level:
    """Run the one level of a plan, and look at the memory meanwhile."""

    async def look() -> None:
        while True:
            await asyncio.to_thread(memory.look)
            await asyncio.sleep(_LOOK_S)

    looking = asyncio.create_task(look())
    try:
        (level,) = await chats.measure(target, workload, plan)
        if looking.done():
            looking.result()  # which is why it has ended
    finally:
        looking.cancel()
    return level


def _start_table(model: str, serving_s: float, answered_s: float) -> Table:
    table = Table("parley up", title=model, title_justify="left")
    table.add_column("after, s", justify="right")
    table.add_row("says that it serves", f"{serving_s:.1f}")
    table.add_row("has answered its first request", f"{answered_s:.1f}")
    return table


def _memory_table(streams: int, at_first: dict[str, int], highest: dict[str, int]) -> Table:
    table = Table("process", title="memory, MB", title_justify="left")
    table.add_column("after the first answer", justify="right")
    table.add_column(f"highest with {streams} streams", justify="right")

    def add(name: str, first: int, most: int) -> None:
        table.add_row(name, f"{first / 1e6:.0f}", f"{most / 1e6:.0f}")

    for kind in highest | at_first:
        add(kind, at_first.get(kind, 0), highest.get(kind, 0))
    table.add_section()
    add("all", sum(at_first.values()), sum(highest.values()))
    return table


if __name__ == "__main__":
    options.run(app)
