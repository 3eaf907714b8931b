"""One run: a service of its own, clients that are busy with it, and the verdict in the end."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from load.in_process.calls import Moment
from load.in_process.life import Life
from load.in_process.service import InProcessService, Kind, Tokens
from load.proving.clients import Clients
from load.proving.history import History, LoggedErrors
from load.proving.oracle import Oracle, talkative
from load.proving.requests import PATIENCE_S
from load.proving.standing import standing
from load.proving.turns import Conversation, Tenant, Turn
from load.proving.verdict import Verdict
from serve_app.settings import Settings
from serve_app.state.connection import Operation

__all__ = ["Broken", "Run", "Setup"]

_loggers = [logging.getLogger(name) for name in ("ray.serve", "asyncio", "load")]

_CONTEXT = 8192
_SETTINGS: dict[str, Any] = {
    "generator": {
        "slots": 8,
        "max_len": _CONTEXT,
        "max_cached_tokens": 8 * _CONTEXT,
        "prefix_block": 16,
        "prefix_cache_mb": 1,
    },
    # Short, so that what waits for them is seen often; in the same order as a service has them.
    "responses": {"lease_s": 0.8, "journal_interval_s": 0.03, "max_queued_turns": 6},
    "redis": {"timeout_s": 0.5},
    "ingress": {"max_moves": 5},
}
_REPLICAS: dict[Kind, int] = {"Generator": 2, "Ingress": 3, "Dialogue": 2, "Tokenizer": 2}
_TENANTS = ("acme", "bolt")
_STEP_S = 0.002
# Whatever a client does waits for several things, each of which has this patience.
_OPERATION_S = 2.5 * PATIENCE_S


class Broken(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What runs have in common.

    Attributes:
        folder: where their files go, and those that all share.
        clients: how many operations are under way at most.
        kills: whether anything dies.
    """

    folder: Path
    clients: int = 8
    kills: bool = True


class Run:
    """Starts with its service up, and a conversation for each tenant.

    Args:
        setup: what it has in common with others.

    Attributes:
        history: what happened.
        service: what is talked to.
        clients: who talks.
    """

    def __init__(self, setup: Setup) -> None:
        self.history = History()
        self._errors = LoggedErrors(self.history)
        for logger in _loggers:
            logger.addHandler(self._errors)
        self._loop = uvloop.new_event_loop()
        Life.follow(self._loop)
        self._folder = Path(tempfile.mkdtemp(prefix="run-", dir=setup.folder))
        tokens = Tokens.bundled(setup.folder / "tokenizer", _CONTEXT)
        settings = Settings.load(_SETTINGS)
        self.service = InProcessService(
            self._folder, settings, tokens, lambda: talkative(_CONTEXT, _STEP_S), _REPLICAS
        )
        tenants = [Tenant(name, self.service.keys.create(name, name)) for name in _TENANTS]
        self.clients = Clients(self.service, self.history, tenants)
        self._oracle = Oracle(tokens, settings.dialogue.persona)
        self._room = asyncio.Semaphore(setup.clients)
        self._under_way: set[asyncio.Task[None]] = set()
        self._operations = 0
        self._closed = False
        self.wait_for(self.service.start())
        for tenant in tenants:
            self.wait_for(self.clients.new_conversation(tenant, keyed=False))

    def wait_for(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let everything go on until something is done."""
        self._loop.run_until_complete(work)

    def settle(self) -> None:
        """Let everything go on until no operation is under way."""
        if self._under_way:
            self.wait_for(_all_done(self._under_way))

    def do(
        self, what: str, with_what: Conversation | Turn | Tenant, work: Coroutine[Any, Any, str]
    ) -> None:
        """Begin an operation as soon as a client is free, and don't wait for its end."""
        self.history.operations[what] += 1
        self.wait_for(self._begin(what, with_what.name, work))

    def kill(self, kind: Kind, which: int, back_after_s: float) -> None:
        """Kill a replica."""
        if self.service.kill(kind, which, back_after_s=back_after_s):
            self.history.note(f"kill {kind}")

    def kill_redis(self, back_after_s: float) -> None:
        """Kill Redis."""
        if self.service.kill_redis(back_after_s=back_after_s):
            self.history.note(f"kill Redis, back after {back_after_s} s")

    def kill_at(self, victim: str, moment: Moment) -> None:
        """Kill something when a Dialogue replica does something next.

        Args:
            victim: `caller` (the ingress replica that waits for it), `replica` (itself), or `Redis`.
            moment: of what the Dialogue replica does.
        """

        def strike(caller: Life, replica: Life) -> None:
            self.history.note(f"kill {victim} {moment[1]} {moment[0]}")
            match victim:
                case "Redis":
                    self.service.kill_redis()
                case "caller":
                    self.service.strike("Ingress", caller)
                case _:
                    self.service.strike("Dialogue", replica)

        self.service.deployment("Dialogue").doom(moment, strike)

    def lose_answer(self, victim: str, operation: Operation) -> None:
        """Have the next answer of Redis to a script lost, though it has carried out the script.

        Args:
            victim: with whom: `replica` (which waits for it), `Redis`, or nobody but the `connection`.
            operation: what the script is for.
        """

        def strike(asking: Life) -> None:
            self.history.note(f"lose the answer to {operation}, and {victim}")
            match victim:
                case "Redis":
                    self.service.kill_redis()
                case "replica":
                    self.service.strike(self.service.kind_of(asking), asking)
            self.history.lost_answers[operation] += 1

        self.service.answers.doom(operation, strike)

    def judge(self) -> None:
        """Come to rest, and come to the verdict.

        Raises:
            Broken: a promise was broken.
        """
        self.settle()
        try:
            self.wait_for(Verdict(self.clients, self._oracle).find())
        except Exception as error:  # noqa: BLE001  (a service that can't be looked at keeps no promise)
            self.history.check(
                "no acknowledged turn is lost", kept=False, what=f"nobody can tell: {error!r}"
            )
        self.history.kills.update(self.service.killed)
        if self.history.violations:
            told = "\n".join(f"{one.promise}: {one.what}" for one in self.history.violations)
            raise Broken(told)

    def close(self) -> None:
        """End the service and its loop."""
        if self._closed:
            return
        self._closed = True
        for logger in _loggers:
            logger.removeHandler(self._errors)
        self.wait_for(self.service.close())
        self.wait_for(self._loop.shutdown_default_executor())
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _begin(self, what: str, name: str, work: Coroutine[Any, Any, str]) -> None:
        await self._room.acquire()
        self._operations += 1
        number = self._operations
        self.history.note(f"#{number} {what}: {name} …")
        task = asyncio.get_running_loop().create_task(self._carry_out(number, what, work))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _carry_out(self, number: int, what: str, work: Coroutine[Any, Any, str]) -> None:
        try:
            async with asyncio.timeout(_OPERATION_S):
                outcome = await work
        except Exception as error:  # noqa: BLE001  (of the client's own making too: it is as bad)
            outcome = "broke"
            if isinstance(error, TimeoutError):
                self.history.note("\n".join(["at work:", *standing()]))
            self.history.check(
                "every request gets a foreseen answer",
                kept=False,
                what=f"#{number} {what}: {error!r}",
            )
        finally:
            self._room.release()
        self.history.ended(what, outcome)
        self.history.note(f"#{number} {what}: {outcome}")


async def _all_done(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)
