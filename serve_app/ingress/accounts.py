"""What becomes of the accounts of requests that are over: counted, and kept for whoever asks."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import OrderedDict
from typing import Any

import orjson

from serve_app.api.account import account_object
from serve_app.errors import AccountNotFound, StateUnavailable
from serve_app.ingress.request_account import RequestAccount
from serve_app.state.accounts import AccountStore, KeptAccount
from serve_app.telemetry.account_metrics import observe_account

__all__ = ["Accounts"]

logger = logging.getLogger("ray.serve")

WRITE_EVERY_S = 0.2
MOST_WAITING = 1024
"""So many accounts wait to be written; when Redis is away or slow, the oldest are forgotten."""
MOST_RECENT = 256
"""So many accounts of its own does an ingress replica remember, Redis or not."""


class Accounts:
    """Takes the accounts of one ingress replica's requests.

    Args:
        store: keeps them for all replicas to find.
        kept: accounts that a tenant may have there; 0 keeps none, here neither.
    """

    def __init__(self, store: AccountStore, *, kept: int) -> None:
        self._store = store
        self._kept = kept
        self._recent: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._waiting: list[tuple[str, KeptAccount]] = []
        self._writer: asyncio.Task[None] | None = None

    def take(self, account: RequestAccount) -> None:
        """Count an account that is closed, and keep it; the request has been answered by then."""
        if not account.api:
            return
        closed = account.snapshot()
        observe_account(closed, account.model)
        names = tuple(name for name in (closed.request, closed.http_request) if name)
        if not self._kept or not names:
            return
        body = orjson.dumps(account_object(closed))
        for name in names:
            self._recent[account.tenant, name] = body
        while len(self._recent) > MOST_RECENT:
            self._recent.popitem(last=False)
        self._waiting.append((account.tenant, KeptAccount(names, body)))
        del self._waiting[:-MOST_WAITING]
        if self._writer is None or self._writer.done():
            # An empty context: Serve cancels what was called on behalf of a request that has ended.
            self._writer = asyncio.get_running_loop().create_task(
                self._write(), context=contextvars.Context()
            )

    async def find(self, tenant: str, name: str) -> dict[str, Any]:
        """Return the account of a tenant's request.

        Args:
            tenant: whose request it was.
            name: id of the reply, or the `x-request-id` that it carried.

        Raises:
            AccountNotFound: there is none, or no longer.
            StateUnavailable: another replica may have it, and Redis can't be asked.
        """
        body = self._recent.get((tenant, name)) or await self._store.find(tenant, name)
        if body is None:
            msg = (
                f"There is no account of a request {name[:100]!r}: it is too long ago, is not over, "
                "or never was. Take the id or the x-request-id of a reply of the last minutes."
            )
            raise AccountNotFound(msg, param="request_id")
        found: dict[str, Any] = orjson.loads(body)
        return found

    async def _write(self) -> None:
        while self._waiting:
            await asyncio.sleep(WRITE_EVERY_S)
            waiting, self._waiting = self._waiting, []
            by_tenant: dict[str, list[KeptAccount]] = {}
            for tenant, account in waiting:
                by_tenant.setdefault(tenant, []).append(account)
            try:
                for tenant, accounts in by_tenant.items():
                    await self._store.keep(tenant, accounts)
            except StateUnavailable:
                continue  # the pool has logged it; these are found on this replica alone
            except Exception:
                logger.exception("Accounts of requests could not be kept.")
