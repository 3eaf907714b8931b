"""The way to Redis: one bounded pool per process, one time limit per call, one kind of failure."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
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

__all__ = ["AnswerLost", "RedisPool"]

logger = logging.getLogger("ray.serve")

_RETRIES = 2
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
}
_CODE = re.compile(rf"\b({'|'.join(_REASONS)})\b")


class AnswerLost(Exception):
    """A command was sent and no answer came: Redis may have carried it out, or may still do so."""


class RedisPool:
    """Connections to one Redis, shared by every store of a process.

    A dropped connection is made anew and the call repeated, so that a Redis that was restarted is
    found again without help; all calls made through it must therefore bear being made twice.
    The URL holds a password: it appears in no message, log or repr. Of calls that fail, the log says
    where Redis is and the message doesn't, because clients of the API get to read it.

    Args:
        url: redis://, rediss:// or unix:// with user and password as Redis clients write them.
        settings: time limit and pool size.

    Raises:
        ConfigError: the URL can't be used.
    """

    def __init__(self, url: SecretStr, settings: RedisSettings) -> None:
        self.where = _without_secrets(url)
        self._timeout_s = settings.timeout_s
        self._logged: dict[str, float] = {}  # when each reason was last logged
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
                retry=Retry(ExponentialBackoff(cap=0.1, base=0.01), _RETRIES),
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
    def open(cls, settings: RedisSettings, home: Path) -> RedisPool:
        """Take the Redis that the settings name, else the one that runs under `home`.

        Raises:
            ConfigError: the URL can't be used.
            StateUnavailable: no URL is set and no local Redis runs.
        """
        url = settings.url or RedisServer(home).url()
        if url is None:
            msg = "No Redis to keep state in: set PARLEY_REDIS_URL, or let `parley up` start one."
            raise StateUnavailable(msg)
        return cls(url, settings)

    def __repr__(self) -> str:
        return f"RedisPool({self.where})"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        """Lend the client for one call, and turn every failure to reach Redis into one error.

        Raises:
            StateUnavailable: Redis can't be reached, is too slow, or refuses to serve.
        """
        try:
            # The limit spans waiting for a connection, connecting, and every retry.
            async with asyncio.timeout(self._timeout_s):
                yield self._client
        except (TimeoutError, redis.exceptions.TimeoutError):
            reason = f"did not answer within {self._timeout_s:g} s"
            raise self._unavailable(reason, "check its load and the network") from None
        except redis.exceptions.RedisError as error:
            # Without their cause: errors of Redis quote commands, and those hold people's text.
            raise self._unavailable(*_explain(error)) from None
        except OSError as error:
            reason = f"can't be reached ({error.strerror or type(error).__name__})"
            raise self._unavailable(reason, "check that it runs and the address is right") from None

    async def ask_once(self, *command: Any) -> Any:
        """Send a command, not a second time whatever happens, and return its answer.

        Raises:
            StateUnavailable: Redis did not carry it out.
            AnswerLost: nobody knows whether it did.
        """
        unanswered = False
        try:
            async with self.client() as client:
                connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
                unanswered = True
                try:
                    await connection.send_command(*command)
                    return await connection.read_response()
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

    async def ping(self) -> None:
        """Prove that Redis answers.

        Raises:
            StateUnavailable: it doesn't.
        """
        async with self.client() as client:
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

    def _unavailable(self, reason: str, remedy: str) -> StateUnavailable:
        now = time.monotonic()
        if now - self._logged.get(reason, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged[reason] = now
            logger.warning("Redis at %s %s: %s.", self.where, reason, remedy)
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
