"""`python -m load.engine`: how fast the bare engine is, and how near to what the machine allows."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from load import command_line as options
from load.bare_engine import engine_settings, run_bare_engine
from load.report import console, engine_json, engine_table, write_json
from load.supply import Plan
from load.workload import Workload
from serve_app.errors import ConfigError
from serve_app.settings import Settings

__all__ = ["app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

BackendName = Literal["cpu", "tensorrt", "simulated"]

# What only the one or the other looks at, by the names of parameters.
_CONVERSATIONS = (
    "threads",
    "prefix_cache_mb",
    "turns",
    "system_tokens",
    "prompt_tokens",
    "output_tokens",
    "ignore_eos",
    "seed",
    "rounds",
    "conversations",
    "duration",
)
_STEPS = ("past", "steps")


@app.command()
def engine(
    context: typer.Context,
    *,
    backend: Annotated[
        BackendName,
        typer.Option(
            help="`cpu` holds conversations. `tensorrt` has a GPU decode batches of --concurrency "
            "sequences, and `simulated` runs the same on a device that only pretends to be one."
        ),
    ] = "cpu",
    past: Annotated[
        int, typer.Option(min=2, help="Tokens in each slot before it decodes, on a device.")
    ] = 512,
    steps: Annotated[
        int, typer.Option(min=2, help="Steps measured of each batch size, on a device.")
    ] = 128,
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

    On a device, measure steps against their floor: bytes of weights and K/V over memory bandwidth.

    What no option says is as in `parley config show`.
    """
    _refuse(context, _STEPS if backend == "cpu" else _CONVERSATIONS, backend)
    if backend != "cpu":
        settings = engine_settings(
            model={"source": model, "precision": precision, "form": "standard"},
            generator={"slots": slots, "prefill_chunk": prefill_chunk},
        )
        batches = options.numbers(concurrency)
        _measure_device(settings, backend, batches, past, steps, temperature, json)
        return
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


def _refuse(context: typer.Context, names: tuple[str, ...], backend: str) -> None:
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            msg = f"--{name.replace('_', '-')} says nothing to --backend {backend}; leave it out."
            raise typer.BadParameter(msg)


def _measure_device(
    settings: Settings,
    backend: Literal["tensorrt", "simulated"],
    batches: tuple[int, ...],
    past: int,
    steps: int,
    temperature: float,
    json: Path | None,
) -> None:
    try:
        # torch is there on GPU machines, and where tests run.
        from load.device_engine import run_device_engine
        from load.device_report import device_json, device_table
    except ImportError as error:
        msg = f"--backend {backend} takes PyTorch ({error}); `pip install 'parley[gpu]'` brings it."
        raise ConfigError(msg) from error
    run = run_device_engine(
        settings,
        backend,
        batches,
        past=past,
        steps=steps,
        temperature=temperature,
        on_level=partial(options.say_level, "engine on a device"),
    )
    console.print(device_table(run))
    if json is not None:
        write_json(json, {"engine": device_json(run)})


if __name__ == "__main__":
    options.run(app)
