"""Holds the workload's conversations with a server, through HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from load.command_line import bearer
from load.dialects import MODES, Mode, ReplyStream, refusal_kind
from load.http_client import Address, HttpClient, RequestFailed
from load.measurements import Level, Reply
from load.supply import Plan, Supply
from load.workload import Conversation, Workload

__all__ = ["Target", "exchange", "first_model", "measure"]

# After a failure, so that a server that refuses everybody is not asked in a tight loop.
_PAUSE_S = 0.2
# What is asked of a server once, before the chats.
_LOOKUP_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked.

    Attributes:
        address: of the API, with its version: http://127.0.0.1:8000/v1.
        model: the model's name there.
        mode: which of its APIs.
        api_key: sent as a bearer token; None sends none.
        timeout_s: seconds after which a reply that has not ended counts as failed.
    """

    address: Address
    model: str
    mode: Mode = "chat"
    api_key: str | None = None
    timeout_s: float = 300.0


async def first_model(address: Address, api_key: str | None) -> str:
    """Return the first model that a server lists.

    Raises:
        RequestFailed: it can't be reached, or lists none.
    """
    client = _client(address, api_key)
    try:
        async with asyncio.timeout(_LOOKUP_S):
            response = await client.request("GET", "/models")
    except TimeoutError as error:
        msg = f"{address.authority} did not answer in {_LOOKUP_S:.0f} s."
        raise RequestFailed("timeout", msg) from error
    finally:
        client.close()
    try:
        return str(orjson.loads(response.body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        msg = f"{address.authority} lists no model (HTTP {response.status}); name one with --model."
        raise RequestFailed("no model", msg) from error


async def measure(
    target: Target,
    workload: Workload,
    plan: Plan,
    *,
    on_level: Callable[[int], None] = lambda _: None,
    on_warm: Callable[[], None] = lambda: None,
) -> list[Level]:
    """Hold the conversations of every level of concurrency, one level after the other.

    Args:
        target: who is asked.
        workload: what is said.
        plan: how much of it.
        on_level: told of each level's concurrency before it begins.
        on_warm: told when a level's warm-up is over and what is measured begins.

    Raises:
        RequestFailed: not one question of a level's warm-up was answered.
    """
    levels = []
    for concurrency, warm_up, measured in plan.levels(workload):
        on_level(concurrency)
        clients = [_client(target.address, target.api_key) for _ in range(concurrency)]
        try:
            trial = await _hold_all(target, workload, warm_up, clients)
            if trial and all(reply.error is not None for reply in trial):
                kind = str(trial[0].error)
                msg = f"{target.address.authority} answered no question of the warm-up: {kind}."
                raise RequestFailed(kind, msg)
            on_warm()
            began, cpu = time.perf_counter(), time.process_time()
            replies = await _hold_all(target, workload, measured, clients)
            ended, cpu_ended = time.perf_counter(), time.process_time()
        finally:
            for client in clients:
                client.close()
        levels.append(
            Level.of(
                replies,
                concurrency=concurrency,
                conversations=measured.handed_out,
                wall_s=ended - began,
                cpu_s=cpu_ended - cpu,
            )
        )
    return levels


async def _hold_all(
    target: Target, workload: Workload, supply: Supply, clients: list[HttpClient]
) -> list[Reply]:
    replies: list[Reply] = []

    async def hold(client: HttpClient) -> None:
        while (conversation := supply.next()) is not None:
            while not conversation.over:
                reply = await _ask(target, workload, conversation, client)
                replies.append(reply)
                if reply.error is not None:
                    # Without its answer the conversation can't go on.
                    await asyncio.sleep(_PAUSE_S)
                    break

    await asyncio.gather(*map(hold, clients))
    return replies


async def _ask(
    target: Target, workload: Workload, conversation: Conversation, client: HttpClient
) -> Reply:
    """Put the conversation's next question and wait for the whole reply."""
    dialect = MODES[target.mode]
    body = dialect.body(target.model, conversation.ask(), workload)
    stream = await exchange(client, dialect, body, timeout_s=target.timeout_s)
    stream.reply.tokens = conversation.hear(stream.text, stream.reply.tokens)
    return stream.reply


async def exchange(
    client: HttpClient, dialect: type[ReplyStream], body: dict[str, Any], *, timeout_s: float
) -> ReplyStream:
    """Put a question and wait for the whole reply, or for what goes wrong, which is in `reply.error`.

    Args:
        client: has the connection.
        dialect: the API.
        body: the question, as that API has it.
        timeout_s: seconds after which a reply that has not ended counts as failed.
    """
    stream = dialect()
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.request(
                "POST", dialect.PATH, orjson.dumps(body), sink=stream.feed
            )
    except TimeoutError:
        stream.failed("timeout")
    except RequestFailed as failure:
        stream.failed(failure.kind)
    else:
        if response.status != 200:
            stream.failed(refusal_kind(response.status, response.body))
        elif not stream.complete:
            stream.failed("cut")
    return stream


def _client(address: Address, api_key: str | None) -> HttpClient:
    return HttpClient(address, bearer(api_key))
