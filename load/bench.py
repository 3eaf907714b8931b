"""`python -m load.bench`: how fast a server is through HTTP, whoever's it is."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any

import typer
import uvloop

from load import chats
from load import command_line as options
from load.bare_engine import engine_settings, run_bare_engine
from load.dialects import Mode
from load.http_client import Address
from load.measurements import Level
from load.report import console, engine_json, engine_table, http_table, ratio_table, write_json
from load.supply import Plan
from load.workload import Workload

__all__ = ["app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def bench(
    *,
    url: Annotated[
        str, typer.Option(help="Where the API is, with its version.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option(help="Name of the model there; the first that it lists if none.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="Which API.")] = "chat",
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a reply counts as failed.")
    ] = 300.0,
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
    with_engine: Annotated[
        bool,
        typer.Option(
            "--with-engine", help="Then measure the bare engine here, and compare the two."
        ),
    ] = False,
    engine_model: options.Source = None,
    precision: options.Precision = None,
    slots: options.Slots = None,
    threads: options.Threads = None,
) -> None:
    """Hold concurrent multi-turn streaming chats with an OpenAI-compatible server, and time them.

    Every client holds one conversation after the other and keeps its history. The exit code is 1
    if a reply failed.
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
        model={"source": engine_model, "precision": precision},
        generator={"slots": slots, "threads": threads},
    )
    address, key = Address.of(url), options.api_key(api_key_env)
    levels = uvloop.run(_through_http(address, model, mode, key, timeout, workload, plan))
    console.print(http_table(levels))
    report: dict[str, Any] = {
        "url": url,
        "mode": mode,
        "workload": dataclasses.asdict(workload),
        "http": [dataclasses.asdict(level) for level in levels],
    }
    if with_engine:
        run = run_bare_engine(
            settings, workload, plan, on_level=partial(options.say_level, "bare engine")
        )
        console.print(engine_table(run), ratio_table(levels, run.levels))
        report["engine"] = engine_json(run)
    if json is not None:
        write_json(json, report)
    if any(level.errors for level in levels):
        raise typer.Exit(1)


async def _through_http(
    address: Address,
    model: str | None,
    mode: Mode,
    api_key: str | None,
    timeout_s: float,
    workload: Workload,
    plan: Plan,
) -> list[Level]:
    target = chats.Target(
        address=address,
        model=model or await chats.first_model(address, api_key),
        mode=mode,
        api_key=api_key,
        timeout_s=timeout_s,
    )
    return await chats.measure(
        target, workload, plan, on_level=partial(options.say_level, "through HTTP")
    )


if __name__ == "__main__":
    options.run(app)
