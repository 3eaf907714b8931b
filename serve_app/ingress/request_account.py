"""The account of one request while it is answered, from its first byte at the edge to the last one sent."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Scope

from serve_app.api.reply import Usage
from serve_app.telemetry import ledger
from serve_app.telemetry.account import Account, Stage
from serve_app.telemetry.ledger import Ledger, OpenStage

__all__ = ["Arrival", "RequestAccount", "current_account", "mark_arrival"]

_PROCESS = secrets.token_hex(8)
_ARRIVAL = "parley.arrival"


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request came to the edge, in `time.perf_counter` seconds.

    Attributes:
        process: names the process whose clock it is; Serve's own proxy is another one.
        began_s: its head was there.
        read_s: its body was.
    """

    process: str
    began_s: float
    read_s: float


def mark_arrival(scope: Scope, began_s: float) -> None:
    """Take note that a request whose head came at `began_s` has been read."""
    scope[_ARRIVAL] = Arrival(_PROCESS, began_s, time.perf_counter())


class RequestAccount(Ledger):
    """A request's ledger, and what is known of the request besides.

    Whoever still works for the request holds the account, the gate first; it is closed when the last one
    lets go of it.

    Attributes:
        tenant: whose request it is.
        request: id of the reply; "" where none has been given.
        http_request: the `x-request-id` of the answer.
        api: what was asked for; "" where nothing is generated, and then nobody wants the account.
        usage: tokens, once they are known.
        first_token_s: seconds from its arrival to its first token, or None.
        choices: how many replies.
        moves: how often the one that ended last went on with another generator.
        error: code of what it failed with, or None.
    """

    __slots__ = (
        "_arrived",
        "_booked_before_s",
        "_closed",
        "_created_at",
        "_generated_at",
        "_holders",
        "_validating",
        "api",
        "choices",
        "error",
        "first_token_s",
        "http_request",
        "model",
        "moves",
        "request",
        "tenant",
        "usage",
    )

    def __init__(
        self,
        *,
        arrived: float | None = None,
        closed: Callable[[RequestAccount], None] = lambda _: None,
    ) -> None:
        """Begin an account.

        Args:
            arrived: when, in `time.perf_counter` seconds; now if nothing is said.
            closed: called once nobody holds it any more.
        """
        super().__init__()
        now = time.perf_counter()
        self._arrived = now if arrived is None else arrived
        self._created_at = time.time() - (now - self._arrived)
        self._closed = closed
        self._holders = 1
        self._validating: OpenStage | None = None
        self._generated_at: float | None = None
        self._booked_before_s = 0.0
        self.tenant = ""
        self.request = ""
        self.http_request = ""
        self.api = ""
        self.model = ""
        self.usage = Usage(0, 0, 0)
        self.first_token_s: float | None = None
        self.choices = 1
        self.moves = 0
        self.error: str | None = None

    @classmethod
    def of(cls, scope: Scope, closed: Callable[[RequestAccount], None]) -> RequestAccount:
        """Begin the account of a request at the gate; validating it is the stage that is open then."""
        now = time.perf_counter()
        arrival = scope.get(_ARRIVAL)
        if not isinstance(arrival, Arrival) or arrival.process != _PROCESS:
            arrival = Arrival(_PROCESS, now, now)
        account = cls(arrived=arrival.began_s, closed=closed)
        account.book("receive", transfer_s=arrival.read_s - arrival.began_s)
        account.book("validate", compute_s=now - arrival.read_s)
        header = (value for name, value in scope["headers"] if name == b"x-request-id")
        account.http_request = next(header, b"").decode("latin-1")[:128]
        account._validating = account.stage("validate")
        account._validating.__enter__()
        return account

    def begin(self, api: str, request: str, model: str) -> None:
        """Say what is asked for, and that the request is found to be in order.

        Args:
            api: such as "chat.completions".
            request: id of the reply.
            model: name of the model that is to answer.
        """
        self.api, self.request, self.model = api, request, model
        self._validated()

    def generated(self, at: float) -> None:
        """Say when the last token came: all that isn't booked from then on is the writing of the answer.

        Args:
            at: `time.perf_counter` seconds.
        """
        self._generated_at, self._booked_before_s = at, self.booked_s

    def since_arrival(self, at: float) -> float:
        """Return the seconds from the request's arrival to a `time.perf_counter` time."""
        return at - self._arrived

    def hold(self) -> None:
        """Keep the account open until this holder too lets go of it."""
        self._holders += 1

    def release(self) -> None:
        """Let go of the account; the last one closes it."""
        self._holders -= 1
        if not self._holders:
            self._validated()
            self._closed(self)

    def snapshot(self) -> Account:
        """Return the account as it would be if the request ended now."""
        now = time.perf_counter()
        stages = list(self.stages())
        if self._generated_at is not None:
            booked_since_s = self.booked_s - self._booked_before_s
            stages.append(Stage("write", max(0.0, now - self._generated_at - booked_since_s)))
        return Account(
            request=self.request,
            http_request=self.http_request,
            api=self.api,
            created_at=self._created_at,
            total_s=now - self._arrived,
            stages=tuple(stages),
            first_token_s=self.first_token_s,
            prompt_tokens=self.usage.prompt_tokens,
            cached_tokens=self.usage.cached_tokens,
            completion_tokens=self.usage.completion_tokens,
            choices=self.choices,
            moves=self.moves,
            error=self.error,
        )

    def _validated(self) -> None:
        if self._validating is not None:
            self._validating.__exit__(None, None, None)
            self._validating = None


def current_account() -> RequestAccount:
    """Return the account of the request that is being answered, or one that nobody will see."""
    account = ledger.current()
    return account if isinstance(account, RequestAccount) else RequestAccount()
