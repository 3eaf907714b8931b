"""`python -m load.engine`: how fast the bare engine is, and how near to what the machine allows."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated

import typer

from load import command_line as options
from load.bare_engine import engine_settings, run_bare_engine
from load.report import console, engine_json, engine_table, write_json
from load.supply import Plan
from load.workload import Workload

__all__ = ["app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def engine(
    *,
    model: options.Source = None,
    precision: options.Precision = None,
    slots: options.Slots = None,
    threads: options.Threads = None,
    prefill_chunk: Annotated[
        int | None, typer.Option(min=1, help="Most prompt tokens in a step in which others decode.")
    ] = None,
    prefix_cache_mb: Annotated[
        int | None, typer.Option(min=0, help="Memory for cached prefixes; 0 turns it off.")
    ] = None,
    concurrency: options.Concurrency = "1,8,32",
    turns: options.Turns = 3,
    system_tokens: options.SystemTokens = 110,
    prompt_tokens: options.PromptTokens = 40,
    output_tokens: options.OutputTokens = 64,
    ignore_eos: options.IgnoreEos = True,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = None,
    rounds: options.Rounds = 2,
    conversations: options.Conversations = None,
    duration: options.Duration = None,
    json: options.JsonFile = None,
) -> None:
    """Measure the bare engine: the workload of load.bench, without a server around it.

    What no option says is as in `parley config show`.
    """
    workload = Workload(
        turns=turns,
        system_tokens=system_tokens,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        ignore_eos=ignore_eos,
        temperature=temperature,
        seed=options.fresh_seed(seed),
    )
    plan = Plan(options.numbers(concurrency), rounds, conversations, duration)
    settings = engine_settings(
        model={"source": model, "precision": precision},
        generator={
            "slots": slots,
            "threads": threads,
            "prefill_chunk": prefill_chunk,
            "prefix_cache_mb": prefix_cache_mb,
        },
    )
    run = run_bare_engine(
        settings, workload, plan, on_level=partial(options.say_level, "bare engine")
    )
    console.print(engine_table(run))
    if json is not None:
        write_json(json, {"workload": dataclasses.asdict(workload), "engine": engine_json(run)})


if __name__ == "__main__":
    options.run(app)
