"""What clients do to learn of a response: read it, and its events, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import orjson

from load.in_process.exchange import ConnectionLost, Exchange
from load.proving.requests import AGAIN, PATIENCE_S, PAUSE_S, Requests, code_of
from load.proving.telling import Telling
from load.proving.turns import ENDED, Turn

__all__ = ["Reading"]


class Reading(Requests):
    """Reads responses, and checks what is told of them against what was told before."""

    async def follow(
        self, turn: Turn, exchange: Exchange, leave_after: int | None, *, by_id: bool
    ) -> str:
        """Read the answer to a turn to its end; see `Clients.send`."""
        if not turn.stream:
            try:
                body = await exchange.whole()
            except ConnectionLost:
                turn.cut()
                return "cut"
            self.sees_only_its_own(turn.tenant, body, turn.name)
            return self.told(turn, orjson.loads(body))
        telling = Telling(self.history, turn.name)
        with contextlib.suppress(ConnectionLost):
            await self._read(turn, exchange, telling, leave_after)
        if not telling.stored and telling.last is None:
            turn.cut()
            return "cut"
        outcome = await self._read_on(turn, telling, by_id=by_id)
        if telling.last is None:
            turn.cut()
        return outcome

    async def _read(
        self, turn: Turn, exchange: Exchange, telling: Telling, leave_after: int | None = None
    ) -> None:
        telling.connect()
        async for piece in exchange.pieces():
            self.sees_only_its_own(turn.tenant, piece, "a stream")
            telling.take(piece)
            if telling.stored and telling.response is not None:
                turn.named(telling.response)
            if leave_after is not None and len(telling.events) >= leave_after:
                exchange.leave()
                return
        telling.closed()

    async def _read_on(self, turn: Turn, telling: Telling, *, by_id: bool) -> str:
        """Read a response's stream to its end, by as many connections as it takes."""
        give_up = time.monotonic() + PATIENCE_S
        connections = 1
        while telling.last is None:
            if time.monotonic() > give_up:
                self.history.check(
                    "every stream has one last event", kept=False, what=f"{turn.name} has no end"
                )
                return "no end"
            if (refusal := await self._reconnect(turn, telling, by_id=by_id)) is not None:
                return refusal
            connections += 1
        turn.tellings.append(telling)
        end = telling.end
        if end is None:
            raise AssertionError
        outcome = self.told(turn, end)
        return f"{outcome}, resumed" if connections > 1 else outcome

    async def _reconnect(self, turn: Turn, telling: Telling, *, by_id: bool) -> str | None:
        """Read on for one connection; return why there can be no other."""
        path = f"/v1/responses/{telling.response or turn.response}?stream=true"
        nowhere = turn.may_be_nowhere
        headers = {}
        if telling.next_number:
            behind = str(telling.next_number - 1)
            if by_id:
                headers = {"last-event-id": behind}
            else:
                path += f"&starting_after={behind}"
        try:
            exchange = await self.begin(turn.tenant, "GET", path, headers=headers)
            if exchange.status == 200:
                await self._read(turn, exchange, telling)
                if telling.error is None:
                    return None
                code, body = telling.error, b""
            else:
                body = await exchange.whole()
                code = code_of(body)
        except ConnectionLost:
            await asyncio.sleep(PAUSE_S)
            return None
        if code == "response_not_found":
            self.history.check(
                "no acknowledged turn is lost",
                nowhere or turn.may_be_nowhere,
                f"{turn.name} is not found any more",
            )
            return code
        self.foreseen(code in AGAIN, path, exchange.status, body)
        await asyncio.sleep(PAUSE_S)
        return None

    def told(self, turn: Turn, response: dict[str, Any]) -> str:
        """Take note of a response that a client got."""
        turn.named(response["id"])
        failed = response["status"] == "failed"
        self.history.check(
            "none is there twice under one key",
            turn.response == response["id"] or failed or not turn.settled,
            f"{turn.name} is {response['id']} too",
        )
        if response["status"] not in ENDED:
            if not turn.settled and turn.response == response["id"]:
                turn.outcome, turn.final, turn.under_way = "unknown", None, True
            return str(response["status"])
        if turn.may_be_gone and turn.settled:
            return "stored, and asked to be deleted"
        different = turn.told(response)
        self.history.check("no acknowledged turn is lost", different is None, str(different))
        return turn.outcome

    async def resume(self, turn: Turn, *, behind: int, by_id: bool) -> str:
        """Read a response's stream again, from some event on."""
        if turn.response is None:
            return "unknown"
        telling = Telling(self.history, turn.name)
        known = next(iter(turn.tellings), None)
        if known is not None:
            # What comes is the rest of a stream whose beginning was heard before.
            telling.response = known.response
            behind %= known.next_number + 1
            telling.events = {n: known.events[n] for n in range(behind) if n in known.events}
        return await self._read_on(turn, telling, by_id=by_id)

    async def follow_whole(self, turn: Turn, telling: Telling) -> bool:
        """Read all events of a response; return whether they came to their end."""
        give_up = time.monotonic() + PATIENCE_S
        while telling.last is None and time.monotonic() < give_up:
            if await self._reconnect(turn, telling, by_id=False) is not None:
                return False
        return telling.last is not None

    async def read(self, turn: Turn) -> str:
        """Read a response."""
        if turn.response is None:
            return "unknown"
        late = turn.gone_since is not None
        nowhere = turn.may_be_nowhere
        path = f"/v1/responses/{turn.response}"
        try:
            status, body, _ = await self.ask(turn.tenant, "GET", path)
        except ConnectionLost:
            return "cut"
        if status == 200:
            response = orjson.loads(body)
            self.history.check("what is deleted stays away", not late, f"{turn.name} can be read")
            self.history.check(
                "every resumed stream equals the original",
                turn.final is None or turn.final["store"],
                f"{turn.name} was told to be kept nowhere, and can be read",
            )
            return self.told(turn, response)
        gone = status == 404 and (nowhere or turn.may_be_nowhere)
        self.foreseen(gone or code_of(body) in AGAIN, f"GET {path}", status, body)
        return code_of(body)
