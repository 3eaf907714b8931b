"""The way to Redis: one bounded pool per process, one time limit per call, one kind of failure."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from urllib.parse import urlsplit

import redis.exceptions
from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.maint_notifications import MaintNotificationsConfig

from serve_app.errors import ConfigError, StateUnavailable
from serve_app.settings import RedisSettings
from serve_app.state.server import RedisServer
from serve_app.telemetry import ledger

__all__ = [
    "BRIDGED_S",
    "OPERATIONS",
    "AnswerLost",
    "CallObserver",
    "Operation",
    "RedisPool",
    "named_url",
]

logger = logging.getLogger("ray.serve")

_RETRIES = 2

BRIDGED_S = 1.5
"""A call waits so long for a Redis that is away: one that was killed is back sooner, if it is watched."""

# No more of the call's time limit than this, so that its error can still tell why.
_BRIDGED_PART = 0.75
_BRIDGE_PAUSE_S = 0.05
_RETRY_AFTER_S = 1.0
# Whatever `timeout_s` is, both parts of a health check must end before Serve gives the check up.
_CHECK_S = 2.0
# Every call fails during an outage; a line a minute tells as much.
_LOG_EVERY_S = 60.0

# What Redis does by the code it gives, and what to do about it.
_REASONS = {
    "LOADING": ("is still loading its data", "try again in a moment"),
    "BUSY": ("is busy with somebody's script", "try again in a moment"),
    "NOAUTH": ("refuses this user or password", "check PARLEY_REDIS_URL"),
    "WRONGPASS": ("refuses this user or password", "check PARLEY_REDIS_URL"),
    "NOPERM": ("forbids this user a command", "give the user of PARLEY_REDIS_URL all of its keys"),
    "READONLY": ("is a read-only replica", "point PARLEY_REDIS_URL at the primary"),
    "MASTERDOWN": ("has lost its primary", "point PARLEY_REDIS_URL at the primary"),
    "CLUSTERDOWN": ("is a cluster that is down", "bring its missing nodes back"),
    "MOVED": ("is a node of a Redis Cluster", "name a single Redis in PARLEY_REDIS_URL"),
    "OOM": ("is out of memory", "raise its maxmemory or delete conversations"),
    "MISCONF": ("can't write to its disk", "make room there; its own log says more"),
    "NOREPLICAS": (
        "has too few replicas to take what it must not lose",
        "try again in a moment; if it stays so, bring its replicas back",
    ),
}
_CODE = re.compile(rf"\b({'|'.join(_REASONS)})\b")

Operation = Literal[
    "account",
    "archive",
    "begin",
    "commit",
    "conversation",
    "idempotency",
    "journal",
    "ping",
    "profile",
    "response",
    "summary",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
"""What calls are for, as metrics tell them apart."""


class CallObserver(Protocol):
    """Who wants to know of calls: a replica, which reports them; commands have nobody."""

    def took(self, operation: Operation, seconds: float) -> None:
        """Hear how long a call took, whatever came of it."""

    def failed(self, operation: Operation) -> None:
        """Hear of a call that Redis didn't answer, or refused."""


class AnswerLost(Exception):
    """A command was sent, and nobody knows what becomes of it.

    No answer came, so that Redis may have carried it out or may still do so; or it was carried out and
    too few replicas have it, so that a failover would undo it.
    """


def named_url(settings: RedisSettings) -> SecretStr | None:
    """Return the URL that the settings or the file that they name hold, or None where nothing is named.

    Raises:
        ConfigError: the file can't be read or is empty.
    """
    if settings.url is not None or settings.url_file is None:
        return settings.url
    try:
        url = settings.url_file.read_text(encoding="utf-8").strip()
        reason = "it is empty"
    except OSError as error:
        url, reason = "", error.strerror or "it can't be read"
    except UnicodeDecodeError:
        url, reason = "", "it is no text"
    if not url:
        msg = (
            f"The Redis URL in {settings.url_file} can't be read: {reason}. Write it there as one line, "
            "or mount the secret that holds it."
        )
        raise ConfigError(msg, param="redis.url_file")
    return SecretStr(url)


_bridged_until: ContextVar[float] = ContextVar("_bridged_until", default=0.0)


class _Bridge(Retry):
    """Tries again for as long as the call's time for that lasts, however calls are nested in it."""

    async def call_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return await super().call_with_retry(*args, **kwargs)
            except self._supported_errors:
                if time.monotonic() >= _bridged_until.get():
                    raise
            await asyncio.sleep(_BRIDGE_PAUSE_S)


class RedisPool:
    """Connections to one Redis, shared by every store of a process.

    A dropped connection is made anew and the call repeated, for a second or so if need be, so that a
    Redis that was restarted is found again without help, and a quick restart goes unnoticed; all calls
    made through it must therefore bear being made twice.
    The URL holds a password: it appears in no message, log or repr. Of calls that fail, the log says
    where Redis is and the message doesn't, because clients of the API get to read it.

    Args:
        url: redis://, rediss:// or unix:// with user and password as Redis clients write them.
        settings: time limit and pool size.
        observer: hears of every call.

    Raises:
        ConfigError: the URL can't be used.
    """

    def __init__(
        self, url: SecretStr, settings: RedisSettings, observer: CallObserver | None = None
    ) -> None:
        self.where = _without_secrets(url)
        self._timeout_s = settings.timeout_s
        self._replicas = settings.replicas
        self._logged: dict[str, float] = {}  # when each reason was last logged
        self._observer = observer
        try:
            pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
                url.get_secret_value(),
                max_connections=settings.pool_size,
                timeout=settings.timeout_s,
                socket_timeout=settings.timeout_s,
                socket_connect_timeout=settings.timeout_s,
                socket_keepalive=True,
                # With them redis-py lends connections without a look whether they still stand.
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
                retry=_Bridge(ExponentialBackoff(cap=0.1, base=0.01), _RETRIES),
            )
        except (ValueError, TypeError):
            # Without its cause, which would quote the URL.
            msg = (
                f"The Redis URL for {self.where} can't be used: write redis://host:6379/0, or "
                "rediss:// for TLS, with the password as :password@ before the host."
            )
            raise ConfigError(msg, param="redis.url") from None
        pool.connection_class = _told_of_closing(pool.connection_class)
        self._client: Redis = Redis.from_pool(pool)

    @classmethod
    def open(
        cls, settings: RedisSettings, home: Path, observer: CallObserver | None = None
    ) -> RedisPool:
        """Take the Redis that the settings name, else the one that runs under `home`.

        Args:
            settings: of the whole pool.
            home: a PARLEY_HOME.
            observer: hears of every call.

        Raises:
            ConfigError: the URL can't be used, or its file can't be read.
            StateUnavailable: no URL is set and no local Redis runs.
        """
        url = named_url(settings) or RedisServer(home).url()
        if url is None:
            msg = "No Redis to keep state in: set PARLEY_REDIS_URL, or let `parley up` start one."
            raise StateUnavailable(msg)
        return cls(url, settings, observer)

    def __repr__(self) -> str:
        return f"RedisPool({self.where})"

    @asynccontextmanager
    async def client(self, operation: Operation, *, bridges: bool = True) -> AsyncIterator[Redis]:
        """Lend the client for one call, and turn every failure to reach Redis into one error.

        Args:
            operation: what the call is for.
            bridges: wait for a Redis that is away only for a moment.

        Raises:
            StateUnavailable: Redis can't be reached, is too slow, or refuses to serve.
        """
        bridged_s = min(BRIDGED_S, _BRIDGED_PART * self._timeout_s) if bridges else 0.0
        _bridged_until.set(time.monotonic() + bridged_s)
        began = time.perf_counter()
        try:
            # The limit spans waiting for a connection, connecting, and every retry.
            async with asyncio.timeout(self._timeout_s):
                yield self._client
        except (TimeoutError, redis.exceptions.TimeoutError):
            reason = f"did not answer within {self._timeout_s:g} s"
            remedy = "check its load and the network"
            raise self._unavailable(operation, reason, remedy) from None
        except redis.exceptions.RedisError as error:
            # Without their cause: errors of Redis quote commands, and those hold people's text.
            raise self._unavailable(operation, *_explain(error)) from None
        except OSError as error:
            reason = f"can't be reached ({error.strerror or type(error).__name__})"
            remedy = "check that it runs and the address is right"
            raise self._unavailable(operation, reason, remedy) from None
        finally:
            waited_s = time.perf_counter() - began
            ledger.waited(waited_s)
            if self._observer is not None:
                self._observer.took(operation, waited_s)

    async def ask_once(self, operation: Operation, *command: Any) -> Any:
        """Send a command that writes, not a second time whatever happens, and return its answer.

        Where the settings want replicas, they have it too when this returns.

        Args:
            operation: what the command is for.
            command: the command.

        Raises:
            StateUnavailable: Redis did not carry it out.
            AnswerLost: nobody knows whether it did, or whether that would survive a failover.
        """
        unanswered = False
        try:
            async with self.client(operation) as client:
                connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
                unanswered = True
                try:
                    await connection.send_command(*command)
                    answer = await connection.read_response()
                    if self._replicas:
                        await self._wait_for_replicas(connection)
                    return answer
                except redis.exceptions.RedisError as error:
                    refusals = redis.exceptions.ResponseError, redis.exceptions.BusyLoadingError
                    unanswered = not isinstance(error, refusals)
                    raise
                finally:
                    await client.connection_pool.release(connection)
        except StateUnavailable as error:
            if unanswered:
                raise AnswerLost from error
            raise

    async def _wait_for_replicas(self, connection: Any) -> None:
        """Wait until replicas have what was written through a connection.

        Raises:
            AnswerLost: too few have it in half of the time limit.
        """
        try:
            await connection.send_command("WAIT", self._replicas, int(self._timeout_s * 500))
            reached = await connection.read_response()
        except redis.exceptions.ResponseError as error:
            self._log(*_explain(error))
            raise AnswerLost from None
        if reached < self._replicas:
            self._log(*_REASONS["NOREPLICAS"])
            raise AnswerLost

    async def ping(self) -> None:
        """Prove that Redis answers.

        Raises:
            StateUnavailable: it doesn't.
        """
        async with self.client("ping", bridges=False) as client:
            await client.ping()

    async def check(self) -> None:
        """Make sure that this pool is not what keeps its process from Redis.

        Without a Redis nothing can be said against the pool, and nothing is.

        Raises:
            RuntimeError: Redis answers a connection apart from the pool, and the pool gets none.
        """
        if not await self._answers_apart():
            return
        try:
            async with asyncio.timeout(_CHECK_S):
                await self.ping()
        except (TimeoutError, StateUnavailable) as error:
            msg = "Redis answers, but not through this replica's pool; it has to be replaced."
            raise RuntimeError(msg) from error

    async def _answers_apart(self) -> bool:
        pool = self._client.connection_pool
        connection = pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(_CHECK_S):
                await connection.connect()
                await connection.send_command("PING")
                await connection.read_response()
        except (TimeoutError, redis.exceptions.RedisError, OSError):
            return False
        finally:
            await connection.disconnect(nowait=True)
        return True

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose(close_connection_pool=True)

    def _log(self, reason: str, remedy: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(reason, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged[reason] = now
            logger.warning("Redis at %s %s: %s.", self.where, reason, remedy)

    def _unavailable(self, operation: Operation, reason: str, remedy: str) -> StateUnavailable:
        if self._observer is not None:
            self._observer.failed(operation)
        self._log(reason, remedy)
        msg = f"Redis {reason}: {remedy}. Stateless requests still work."
        return StateUnavailable(msg, retry_after=_RETRY_AFTER_S)


def _told_of_closing(connection: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return a class of connections that say in redis-py's words that the server has closed them.

    uvloop, which Ray runs replicas on, has a RuntimeError for whoever writes to a closed transport, with
    which redis-py neither connects anew nor tries again.
    """

    class Connection(connection):  # type: ignore[misc, valid-type]
        async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            try:
                await super().send_packed_command(*args, **kwargs)
            except RuntimeError as error:
                msg = "Redis has closed the connection."
                raise redis.exceptions.ConnectionError(msg) from error

    return Connection


def _explain(error: redis.exceptions.RedisError) -> tuple[str, str]:
    """Return what Redis did, and what to do, without quoting it."""
    # Redis names the reason in capitals; an error within a script has it somewhere inside.
    if found := _CODE.search(str(error)):
        return _REASONS[found[0]]
    match error:
        case redis.exceptions.BusyLoadingError():
            return _REASONS["LOADING"]
        case redis.exceptions.AuthenticationError() | redis.exceptions.NoPermissionError():
            return _REASONS["NOAUTH"]
        case redis.exceptions.ReadOnlyError():
            return _REASONS["READONLY"]
        case redis.exceptions.OutOfMemoryError():
            return _REASONS["OOM"]
        case redis.exceptions.ConnectionError():
            return "can't be reached", "check that it runs and the address is right"
        case _:
            return f"refuses to serve ({type(error).__name__})", "its own log says why"


def _without_secrets(url: SecretStr) -> str:
    try:
        parts = urlsplit(url.get_secret_value())
        host, port = parts.hostname, parts.port
    except ValueError:
        return "an unreadable address"
    if parts.scheme == "unix":
        return parts.path
    if host is None:
        return "an unreadable address"
    return f"{host}:{port or 6379}"
