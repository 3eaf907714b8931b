"""`python -m load.journal`: what the journals of running responses cost, beside writing every token."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from load import command_line as options
from load.report import console
from serve_app.settings import RedisSettings, ResponsesSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.journal import JournalWriter
from serve_app.state.keyspace import conversation_of, new_response_id
from serve_app.state.sealing import KeyFile, Seal
from serve_app.state.server import RedisServer
from serve_app.state.turns import TurnBegin, TurnStore

__all__ = ["app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

_EVENT = (
    b"id: %d\nevent: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","item_id":"msg_0123456789abcdef0123456789abcdef",'
    b'"output_index":0,"content_index":0,"delta":" word%d","logprobs":[],"sequence_number":%d}\n\n'
)


@dataclass(slots=True)
class _Response:
    """A response that says a token now and then."""

    tenant: str
    response: str
    events: list[bytes]

    def take(self, behind: int) -> list[bytes]:
        return self.events[behind:]

    def end(self, reason: str) -> None:
        raise AssertionError(reason)


@dataclass(frozen=True, slots=True)
class _Cost:
    tokens: int
    writes: int
    cpu_s: float
    redis_bytes: int


async def _measure(
    redis: RedisPool, seal: Seal, *, streams: int, rate: float, seconds: float, interval_s: float
) -> _Cost:
    settings = ResponsesSettings(journal_interval_s=interval_s)
    scripts = ConversationScripts(redis, key_prefix="load", ttl_s=600, max_items=100, seal=seal)
    turns = TurnStore(scripts)
    writer = JournalWriter(scripts, settings, "load")
    responses = [_Response("load", new_response_id(), []) for _ in range(streams)]
    for one in responses:
        begin = TurnBegin(one.response, owner="load", lease_s=60.0, new=True)
        await turns.begin("load", conversation_of(one.response), begin)
    before = await _used(redis)
    began, cpu = time.perf_counter(), time.process_time()
    for one in responses:
        writer.keep(one, events=True)
    said = 0
    while time.perf_counter() - began < seconds:
        for one in responses:
            one.events.append(_EVENT % (said, said, said))
        said += 1
        await asyncio.sleep(max(0.0, began + said / rate - time.perf_counter()))
    cost = time.process_time() - cpu
    await asyncio.sleep(2 * interval_s)
    for one in responses:
        writer.forget(one.response)
    return _Cost(said * streams, writer.writes, cost, await _used(redis) - before)


async def _used(redis: RedisPool) -> int:
    async with redis.client("journal") as client:
        return int((await client.info("memory"))["used_memory"])


async def _run(
    streams: int, rate: float, seconds: float, intervals_s: tuple[float, ...]
) -> list[_Cost]:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        url = server.start()
        file = KeyFile(Path(folder) / "encryption.json")
        file.ensure()
        redis = RedisPool(url, RedisSettings())
        try:
            return [
                await _measure(
                    redis,
                    Seal(file.read()),
                    streams=streams,
                    rate=rate,
                    seconds=seconds,
                    interval_s=interval_s,
                )
                for interval_s in intervals_s
            ]
        finally:
            await redis.close()
            server.stop()


@app.command()
def journal(
    *,
    streams: Annotated[int, typer.Option(min=1, help="Responses at once.")] = 32,
    rate: Annotated[float, typer.Option(min=1, help="Tokens a second of each.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 5.0,
    interval: Annotated[float, typer.Option(help="responses.journal_interval_s.")] = 0.2,
) -> None:
    """Let responses say tokens, journal them in a Redis of its own, and print what that took.

    The second row writes as often as tokens come.
    """
    intervals_s = (interval, 1 / rate)
    table = Table(
        "a write every", "tok/s", "round trips/s", "µs of CPU a token", "bytes in Redis a token"
    )
    costs = asyncio.run(_run(streams, rate, seconds, intervals_s))
    for interval_s, cost in zip(intervals_s, costs, strict=True):
        table.add_row(
            f"{1000 * interval_s:.0f} ms",
            f"{cost.tokens / seconds:.0f}",
            f"{cost.writes / seconds:.1f}",
            f"{1e6 * cost.cpu_s / cost.tokens:.1f}",
            f"{cost.redis_bytes / cost.tokens:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    options.run(app)
