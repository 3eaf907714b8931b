"""`python -m load.soak`: what a service holds on to when it talks for a long time."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import orjson
import typer
import uvloop
from rich.table import Table

from load import chats
from load import command_line as options
from load.dialects import ResponseStream, refusal_kind
from load.http_client import Address, HttpClient, RequestFailed
from load.own_cluster import own_cluster
from load.report import console, write_json
from load.resources import Resources, Sample
from load.verdicts import Verdict, flat, verdict_table
from load.workload import Workload

__all__ = ["Soaked", "app", "hold_conversations", "judge"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

# Every so manieth conversation loses its client in the middle of a reply.
_LEAVES_EVERY = 5
_LEAVES_AFTER_S = 0.3
_PAUSE_S = 0.2
# What is flat: a share of what was there before, or in any case this much.
_SHARE = 0.05
_LEAST_BYTES, _LEAST_DESCRIPTORS, _LEAST_KEYS = 32 << 20, 16.0, 16.0


@dataclass(slots=True)
class Soaked:
    """What was talked meanwhile.

    Attributes:
        conversations: conversations that were created and deleted.
        replies: replies that came whole.
        left: replies that their client didn't wait for.
        tokens: output tokens of whole replies.
        errors: what went wrong, by what it was.
    """

    conversations: int = 0
    replies: int = 0
    left: int = 0
    tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)


@app.command()
def soak(
    *,
    minutes: Annotated[float, typer.Option(min=0.2, help="How long.")] = 20.0,
    users: Annotated[int, typer.Option(min=1, help="Conversations held at once.")] = 8,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between samples.")] = 5.0,
    turns: options.Turns = 3,
    output_tokens: options.OutputTokens = 32,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Let the backend that computes nothing answer.")
    ] = False,
    seed: options.Seed = None,
    json: options.JsonFile = None,
) -> None:
    """Hold stored conversations with a cluster of its own, and sample what it holds on to.

    Each conversation is created, talked in and deleted; every fifth one's client leaves in the middle
    of a reply. Prints what was held at the beginning, the middle and the end, and a verdict on memory,
    file descriptors and keys in Redis. The exit code is 1 if one grows, or if a reply failed.
    """
    workload = Workload(turns=turns, output_tokens=output_tokens, seed=options.fresh_seed(seed))
    settings = (
        {"PARLEY_GENERATOR_BACKEND": "simulated", "PARLEY_MODEL_NAME": "simulated"}
        if simulated
        else {}
    )
    typer.echo("starting a cluster …", err=True)
    with own_cluster(settings) as cluster:
        resources = Resources(cluster)

        async def run() -> Soaked:
            address = Address.of(cluster.url)
            target = chats.Target(address=address, model=await chats.first_model(address, None))
            looking = asyncio.create_task(_look(resources, every))
            try:
                until = time.perf_counter() + 60.0 * minutes
                soaked = await hold_conversations(target, workload, users, until)
                if looking.done():
                    looking.result()  # which is why it has ended
            finally:
                looking.cancel()
            return soaked

        typer.echo(f"{users} conversations at once for {minutes:g} minutes …", err=True)
        soaked = uvloop.run(run())
    verdicts = judge(resources.samples, soaked)
    console.print(_table(resources.samples, soaked), verdict_table(verdicts))
    if json is not None:
        write_json(
            json,
            {
                "minutes": minutes,
                "users": users,
                "talked": dataclasses.asdict(soaked),
                "samples": [dataclasses.asdict(sample) for sample in resources.samples],
                "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
            },
        )
    if not all(verdict.held for verdict in verdicts):
        raise typer.Exit(1)


def judge(samples: list[Sample], soaked: Soaked) -> list[Verdict]:
    """Return a verdict on each thing that a service could hold on to, and on its replies."""
    failed = sum(soaked.errors.values())
    return [
        flat(
            "memory stays flat",
            [float(sum(sample.memory.values())) for sample in samples],
            share=_SHARE,
            least=_LEAST_BYTES,
            unit="MB",
            scale=1e6,
        ),
        flat(
            "file descriptors stay flat",
            [float(sum(sample.descriptors.values())) for sample in samples],
            share=_SHARE,
            least=_LEAST_DESCRIPTORS,
            unit="open",
        ),
        flat(
            "keys in Redis stay flat",
            [float(sample.keys) for sample in samples],
            share=_SHARE,
            least=_LEAST_KEYS,
            unit="keys",
        ),
        Verdict(
            "no reply fails",
            f"{failed} of {soaked.replies + failed} failed",
            held=failed == 0 and soaked.replies > 0,
        ),
    ]


async def hold_conversations(
    target: chats.Target, workload: Workload, users: int, until: float
) -> Soaked:
    """Hold stored conversations, so many at once, and begin no more after a moment.

    Args:
        target: who is asked.
        workload: what is said.
        users: conversations at once.
        until: moment on the clock of `time.perf_counter`.

    Raises:
        RequestFailed: not even the first conversation can be held.
    """
    soaked, numbers = Soaked(), itertools.count(1)
    client = HttpClient(target.address, options.bearer(target.api_key))
    try:
        await _hold(target, workload, next(numbers), client, soaked)
    finally:
        client.close()

    async def talk() -> None:
        while time.perf_counter() < until:
            client = HttpClient(target.address, options.bearer(target.api_key))
            try:
                await _hold(target, workload, next(numbers), client, soaked)
            except RequestFailed as failure:
                soaked.errors[failure.kind] = soaked.errors.get(failure.kind, 0) + 1
                await asyncio.sleep(_PAUSE_S)
            finally:
                client.close()

    await asyncio.gather(*(talk() for _ in range(users)))
    return soaked


async def _hold(
    target: chats.Target, workload: Workload, number: int, client: HttpClient, soaked: Soaked
) -> None:
    created = orjson.loads(await _ask(client, "POST", "/conversations", {}))
    conversation = workload.conversation(number)
    while not conversation.over:
        question = conversation.ask()[-1]
        body = ResponseStream.stored(target.model, question, workload, created["id"])
        stream = ResponseStream()
        leaves = number % _LEAVES_EVERY == 0 and conversation.asked == len(conversation.questions)
        limit = _LEAVES_AFTER_S if leaves else target.timeout_s
        try:
            async with asyncio.timeout(limit):
                response = await client.request(
                    "POST", stream.PATH, orjson.dumps(body), sink=stream.feed
                )
        except TimeoutError:
            if not leaves:
                msg = f"A reply took more than {limit:g} s."
                raise RequestFailed("timeout", msg) from None
            soaked.left += 1
            continue
        if response.status != 200:
            raise _refused(response.status, response.body)
        if stream.reply.error is not None or not stream.complete:
            kind = stream.reply.error or "cut"
            msg = f"A reply did not come whole ({kind})."
            raise RequestFailed(kind, msg)
        conversation.hear(stream.text, stream.reply.tokens)
        soaked.replies += 1
        soaked.tokens += stream.reply.tokens.completion if stream.reply.tokens else 0
    await _ask(client, "DELETE", f"/conversations/{created['id']}")
    soaked.conversations += 1


async def _ask(
    client: HttpClient, method: str, path: str, body: dict[str, object] | None = None
) -> bytes:
    content = b"" if body is None else orjson.dumps(body)
    response = await client.request(method, path, content)
    if response.status != 200:
        raise _refused(response.status, response.body)
    return bytes(response.body)


def _refused(status: int, body: bytes | bytearray) -> RequestFailed:
    kind = refusal_kind(status, body)
    return RequestFailed(kind, f"The server refused a request ({kind}).")


async def _look(resources: Resources, every_s: float) -> None:
    while True:
        await asyncio.to_thread(resources.look)
        await asyncio.sleep(every_s)


def _table(samples: list[Sample], soaked: Soaked) -> Table:
    shown = [samples[0], samples[len(samples) // 2], samples[-1]] if samples else []
    table = Table("after, s", title="held", title_justify="left")
    for sample in shown:
        table.add_column(f"{sample.at:.0f}", justify="right")

    def add(name: str, read: Callable[[Sample], float]) -> None:
        table.add_row(name, *(f"{read(sample):,.0f}" for sample in shown))

    kinds = shown[-1].memory if shown else {}
    for kind in kinds:
        add(f"{kind}, MB", lambda sample, kind=kind: sample.memory.get(kind, 0) / 1e6)  # type: ignore[misc]
    add("all, MB", lambda sample: sum(sample.memory.values()) / 1e6)
    add("file descriptors", lambda sample: sum(sample.descriptors.values()))
    add("keys in Redis", lambda sample: sample.keys)
    table.caption = (
        f"{soaked.conversations} conversations, {soaked.replies} replies, {soaked.left} left alone, "
        f"{soaked.tokens:,} tokens; errors: {soaked.errors or 'none'}"
    )
    table.caption_justify = "left"
    return table


if __name__ == "__main__":
    options.run(app)
