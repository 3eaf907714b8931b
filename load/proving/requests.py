"""Requests of a tenant, and what is checked of every answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping

import orjson

from load.in_process.exchange import ConnectionLost, Exchange
from load.in_process.service import InProcessService
from load.proving.history import History
from load.proving.turns import Tenant

__all__ = ["AGAIN", "PATIENCE_S", "PAUSE_S", "Requests", "code_of"]

PATIENCE_S = 30.0
"""Whatever a client waits for comes within this time, however much dies meanwhile."""

PAUSE_S = 0.05
AGAIN = frozenset(
    {"state_unavailable", "overloaded", "generator_lost", "response_lost", "commit_unknown"}
)
"""Codes of something that died, is away, or is full: try again."""

_MARK = re.compile(rb"\[(\w+):\d+\]")


class Requests:
    """Sends requests through one ingress replica after the other.

    Args:
        service: what is talked to.
        history: takes note.
        tenants: who there is.
    """

    def __init__(self, service: InProcessService, history: History, tenants: list[Tenant]) -> None:
        self.service = service
        self.history = history
        self.tenants = tenants
        self._numbers = 0
        self._through = 0

    def number(self) -> int:
        """Return a number that nothing has yet."""
        self._numbers += 1
        return self._numbers

    async def ask(
        self,
        tenant: Tenant,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request through the next ingress replica and return status, body and headers.

        Raises:
            ConnectionLost: there is no answer.
        """
        exchange = await self.begin(tenant, method, path, body=body, headers=headers)
        whole = await exchange.whole()
        self.sees_only_its_own(tenant, whole, f"{method} {path}")
        return exchange.status, whole, exchange.headers

    async def begin(
        self,
        tenant: Tenant,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Exchange:
        """Send a request and wait for the answer's beginning.

        Raises:
            ConnectionLost: there is none.
        """
        self._through += 1
        sent = {
            "authorization": f"Bearer {tenant.key}",
            "content-type": "application/json",
            **(headers or {}),
        }
        exchange = self.service.request(
            method, path, headers=sent, body=body, through=self._through
        )
        await exchange.begun()
        return exchange

    def sees_only_its_own(self, tenant: Tenant, body: bytes, where: str) -> None:
        """Check that nothing in an answer was written by another tenant."""
        others = {mark for mark in _MARK.findall(body) if mark.decode() != tenant.name}
        self.history.check(
            "no tenant reads another's data", not others, f"{where}: {tenant.name} reads {others}"
        )

    def foreseen(self, kept: object, what: str, status: int, body: bytes) -> None:
        """Check that an answer is one of those that the situation allows."""
        self.history.check(
            "every request gets a foreseen answer", kept, f"{what}: {status} {body[:500]!r}"
        )

    async def ask_until_answered(
        self,
        tenant: Tenant,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        repeatable: bool,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request, and one that may be repeated again while nobody knows what came of it.

        Raises:
            ConnectionLost: there is no answer, and it may not be repeated, or none comes.
        """
        give_up = time.monotonic() + PATIENCE_S
        while True:
            late = not repeatable or time.monotonic() > give_up
            try:
                status, answer, got = await self.ask(
                    tenant, method, path, headers=headers, body=body
                )
            except ConnectionLost:
                if late:
                    raise
            else:
                if late or code_of(answer) not in AGAIN | {"idempotency_in_flight"}:
                    return status, answer, got
            await asyncio.sleep(PAUSE_S)


def code_of(body: bytes) -> str:
    """Return an error's code, or what there is in place of one."""
    try:
        return str(orjson.loads(body)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "no error"
