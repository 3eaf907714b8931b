"""`python -m load.open_loop`: a server under requests that arrive whether or not it keeps up."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import typer
import uvloop
from rich.table import Table

from load import chats
from load import command_line as options
from load.arrivals import OpenLevel, poisson, send_all
from load.dialects import Mode
from load.http_client import Address, HttpClient
from load.measurements import Percentiles
from load.prompts import PromptShape, SyntheticPrompts, count_with
from load.punctual import punctual
from load.report import console, write_json
from serve_app.errors import ConfigError
from serve_app.messages.tokenization import Message

__all__ = ["ExactPrompts", "app", "measure_rate", "open_table", "prompts_for"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def open_loop(
    *,
    url: Annotated[
        str, typer.Option(help="Where the API is, with its version.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option(help="Name of the model there; the first that it lists if none.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="Which API: chat or responses.")] = "chat",
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a reply counts as failed.")
    ] = 120.0,
    rate: Annotated[str, typer.Option(help="Requests per second, as in 0.5,1,2.")] = "1",
    seconds: Annotated[float, typer.Option(min=1, help="Seconds in which they arrive.")] = 30.0,
    prompt_tokens: Annotated[
        int, typer.Option(min=8, help="Tokens of a prompt, the chat template's included; exactly.")
    ] = 160,
    shared_tokens: Annotated[
        int, typer.Option(min=0, help="Of these, what prompts of a group have in common.")
    ] = 96,
    groups: Annotated[int, typer.Option(min=1, help="Groups of prompts.")] = 4,
    output_tokens: options.OutputTokens = 64,
    ttft: Annotated[
        float | None, typer.Option(min=0.01, help="Seconds to a first token that are in time.")
    ] = None,
    seed: options.Seed = None,
    json: options.JsonFile = None,
) -> None:
    """Send requests by a Poisson process, and count every latency from when a request was due.

    Prompts have exactly the tokens asked for, by the server's own count. The exit code is 1 if a
    reply failed other than by being refused, or if a prompt had another length.
    """
    rates = _rates(rate)
    if mode == "completions":
        msg = "Exact prompts are made of messages; choose --mode chat or --mode responses."
        raise ConfigError(msg)
    address, key = Address.of(url), options.api_key(api_key_env)
    shape = PromptShape(prompt_tokens, shared_tokens, groups)
    chosen = options.fresh_seed(seed)

    async def measure() -> list[OpenLevel]:
        target = chats.Target(
            address=address,
            model=model or await chats.first_model(address, key),
            mode=mode,
            api_key=key,
            timeout_s=timeout,
        )
        async with prompts_for(target, shape, seed=chosen) as prompts:
            levels = []
            for number, one in enumerate(rates):
                typer.echo(f"{one:g} requests/s for {seconds:g} s …", err=True)
                levels.append(
                    await measure_rate(
                        target,
                        prompts,
                        rate=one,
                        seconds=seconds,
                        output_tokens=output_tokens,
                        ttft_s=ttft,
                        seed=chosen + number,
                    )
                )
            return levels

    levels = uvloop.run(measure())
    console.print(open_table("open loop", levels))
    if json is not None:
        write_json(
            json,
            {
                "url": url,
                "prompts": dataclasses.asdict(shape),
                "output_tokens": output_tokens,
                "levels": [dataclasses.asdict(level) for level in levels],
            },
        )
    if any(level.errors or level.other_length for level in levels):
        raise typer.Exit(1)


class ExactPrompts:
    """Prompts of one shape that are made, and counted, before they are needed.

    Args:
        prompts: makes them.
        tokens: tokens of each.
    """

    def __init__(self, prompts: SyntheticPrompts, tokens: int) -> None:
        self.tokens = tokens
        self._prompts = prompts
        self._made = 0

    async def take(self, count: int) -> list[tuple[Message, ...]]:
        """Return prompts that nobody has been given before."""
        first, self._made = self._made, self._made + count
        return [await self._prompts.prompt(first + number) for number in range(count)]


@asynccontextmanager
async def prompts_for(
    target: chats.Target, shape: PromptShape, *, seed: int
) -> AsyncIterator[ExactPrompts]:
    """Make prompts whose tokens the server has counted, for as long as the context lasts.

    Raises:
        ConfigError: no such prompts can be made for its model.
        RequestFailed: it counts no tokens.
    """
    # /tokenize stands beside the version, as vLLM has it.
    address = dataclasses.replace(target.address, path=target.address.path.removesuffix("/v1"))
    client = HttpClient(address, options.bearer(target.api_key))
    try:
        fitted = await SyntheticPrompts.fit(shape, count_with(client, target.model), seed=seed)
        yield ExactPrompts(fitted, shape.tokens)
    finally:
        client.close()


async def measure_rate(
    target: chats.Target,
    prompts: ExactPrompts,
    *,
    rate: float,
    seconds: float,
    output_tokens: int,
    ttft_s: float | None,
    seed: int,
) -> OpenLevel:
    """Send requests at a rate, ahead of all else on this machine, and add up what came of them.

    Args:
        target: who is asked.
        prompts: what is said.
        rate: requests per second.
        seconds: in which they arrive.
        output_tokens: tokens of each reply.
        ttft_s: seconds to a first token that are in time; None for any.
        seed: chooses when they arrive.
    """
    times = poisson(rate, seconds, seed=seed)
    said = await prompts.take(len(times))
    with punctual():
        began, arrivals = await send_all(target, said, times, output_tokens=output_tokens)
    return OpenLevel.of(
        arrivals,
        rate=rate,
        seconds=seconds,
        began=began,
        prompt_tokens=prompts.tokens,
        ttft_s=ttft_s,
    )


def open_table(title: str, levels: Sequence[OpenLevel]) -> Table:
    """Return a table with a column per rate."""
    table = Table("requests/s", title=title, title_justify="left")
    for level in levels:
        table.add_column(f"{level.rate:.2f}", justify="right")

    def add(name: str, show: Callable[[OpenLevel], str]) -> None:
        table.add_row(name, *map(show, levels))

    def percentiles(name: str, read: Callable[[OpenLevel], Percentiles | None]) -> None:
        for which in ("p50", "p99"):
            add(
                f"{name} {which}",
                lambda level, which=which: (  # type: ignore[misc]
                    "–" if (one := read(level)) is None else f"{getattr(one, which):.1f}"
                ),
            )

    add("requests", lambda level: f"{level.requests}")
    add("replies", lambda level: f"{level.replies}")
    add("refusals", lambda level: f"{level.refusals}")
    add("errors", lambda level: f"{sum(level.errors.values())}")
    for kind in sorted({kind for level in levels for kind in level.errors}):
        add(f"  {kind}", lambda level, kind=kind: f"{level.errors.get(kind, 0)}")  # type: ignore[misc]
    add("goodput, tok/s", lambda level: f"{level.goodput:.1f}")
    add("whole and in time", lambda level: f"{level.in_time:.1%}")
    table.add_section()
    percentiles("TTFT, ms", lambda level: level.ttft_ms)
    percentiles("  from sending", lambda level: level.sent_ttft_ms)
    percentiles("whole reply, ms", lambda level: level.e2e_ms)
    percentiles("refusal, ms", lambda level: level.refusal_ms)
    table.add_section()
    percentiles("sent late by, ms", lambda level: level.late_ms)
    add("refusals without retry-after", lambda level: f"{level.unsaid}")
    add("prompts of another length", lambda level: f"{level.other_length}")
    return table


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        msg = f"{text!r} is no list of numbers above 0 like 0.5,1,2."
        raise typer.BadParameter(msg)
    return rates


if __name__ == "__main__":
    options.run(app)
