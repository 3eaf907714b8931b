"""Redis away is one error, soon; Redis back is found without help; secrets stay secret."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import time
from pathlib import Path

import pytest
import redis.exceptions
import uvloop
from pydantic import SecretStr

from serve_app.errors import ConfigError, StateUnavailable
from serve_app.settings import RedisSettings
from serve_app.state.call_metrics import CallMetrics
from serve_app.state.connection import RedisPool
from serve_app.state.server import RedisServer
from serve_app.telemetry import metrics

SECRET = "hunter2hunter2"


def pool_of(server: RedisServer, **given: float) -> RedisPool:
    url = server.url()
    assert url is not None
    return RedisPool(url, RedisSettings(**given), CallMetrics())


async def test_it_pings(shared_redis: RedisServer) -> None:
    pool = pool_of(shared_redis)
    await pool.ping()
    await pool.close()


def test_a_connection_that_redis_closed_is_an_error_of_redis_on_rays_event_loop(
    shared_redis: RedisServer,
) -> None:
    async def write_to_a_closed_one() -> None:
        pool = pool_of(shared_redis)
        async with pool.client("ping") as client:
            connection = await client.connection_pool.get_connection()
            connection._writer.transport.abort()
            with pytest.raises(redis.exceptions.ConnectionError, match="closed"):
                await connection.send_command("PING")
        await pool.close()

    uvloop.run(write_to_a_closed_one())


async def test_a_refused_connection_is_an_error_at_once() -> None:
    pool = RedisPool(SecretStr(f"redis://:{SECRET}@127.0.0.1:1/0"), RedisSettings(timeout_s=60))
    start = time.monotonic()
    with pytest.raises(StateUnavailable, match="Redis can't be reached") as caught:
        await pool.ping()
    assert time.monotonic() - start < 30  # half of what waiting would take
    assert caught.value.retry_after


async def test_where_redis_is_stands_in_the_log_once_and_in_no_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [handler])
    pool = RedisPool(SecretStr(f"redis://me:{SECRET}@127.0.0.1:1/0"), RedisSettings())
    for _ in range(3):
        with pytest.raises(StateUnavailable) as caught:
            await pool.ping()
        assert "127.0.0.1" not in caught.value.message
    (record,) = records
    assert record.levelno == logging.WARNING
    assert "Redis at 127.0.0.1:1 can't be reached" in record.getMessage()
    assert SECRET not in record.getMessage()


async def test_a_silent_redis_is_an_error_after_the_timeout(own_redis: RedisServer) -> None:
    pool = pool_of(own_redis, timeout_s=1.5)
    await pool.ping()
    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(StateUnavailable, match=r"within 1\.5 s"):
                await pool.ping()
            assert time.monotonic() - start < 5  # not once more for every retry
    finally:
        os.kill(pid, signal.SIGCONT)
    await pool.ping()
    await pool.close()


async def test_a_redis_that_was_killed_and_started_is_found_again(own_redis: RedisServer) -> None:
    pool = pool_of(own_redis)
    await asyncio.gather(*(pool.ping() for _ in range(8)))
    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StateUnavailable):
        await pool.ping()
    own_redis.start()
    await asyncio.gather(*(pool.ping() for _ in range(8)))
    await pool.close()


async def test_a_restart_between_two_calls_goes_unnoticed(own_redis: RedisServer) -> None:
    pool = pool_of(own_redis)
    await asyncio.gather(*(pool.ping() for _ in range(8)))
    own_redis.stop()
    own_redis.start()
    await asyncio.gather(*(pool.ping() for _ in range(8)))
    await pool.close()


async def test_a_redis_that_is_away_for_a_moment_is_waited_for(own_redis: RedisServer) -> None:
    pool = pool_of(own_redis, timeout_s=20.0)
    async with pool.client("ping") as client:
        await client.set("a", "of a")
    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def asked() -> object:
        async with pool.client("ping") as client:
            return await client.get("a")

    calls = [asyncio.create_task(asked()) for _ in range(8)]
    commit = asyncio.create_task(pool.ask_once("commit", "SET", "b", "of b"))
    await asyncio.sleep(0.3)
    assert not any(call.done() for call in calls)
    await asyncio.to_thread(own_redis.start)
    assert await asyncio.gather(*calls) == [b"of a"] * 8
    assert await commit == b"OK"
    await pool.close()


async def test_a_look_at_redis_and_a_long_outage_are_not_waited_for(
    own_redis: RedisServer,
) -> None:
    pool = pool_of(own_redis, timeout_s=20.0)
    await pool.ping()
    own_redis.stop()
    for call, least, most in ((pool.ping, 0, 1), (pool.ask_once, 1, 10)):
        start = time.monotonic()
        with pytest.raises(StateUnavailable, match="can't be reached"):
            await call(*(["PING"] if call == pool.ask_once else []))
        assert least <= time.monotonic() - start < most
    await pool.close()


async def test_a_call_given_up_does_not_leave_its_answer_to_the_next(
    own_redis: RedisServer,
) -> None:
    pool = pool_of(own_redis, timeout_s=1.5, pool_size=1)
    async with pool.client("conversation") as client:
        await client.set("a", "of a")
        await client.set("b", "of b")

    async def get(key: str) -> object:
        async with pool.client("conversation") as client:
            return await client.get(key)

    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StateUnavailable):
            await get("a")  # timed out
        cancelled = asyncio.create_task(get("a"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [await get("b"), await get("a"), await get("b")] == [b"of b", b"of a", b"of b"]
    await pool.close()


async def test_more_callers_than_connections_wait_their_turn(shared_redis: RedisServer) -> None:
    pool = pool_of(shared_redis, pool_size=2)
    await asyncio.gather(*(pool.ping() for _ in range(50)))
    await pool.close()


async def test_a_wrong_password_is_told_without_telling_it(shared_redis: RedisServer) -> None:
    url = shared_redis.url()
    assert url is not None
    address = url.get_secret_value().split("@")[1]
    pool = RedisPool(SecretStr(f"redis://:{SECRET}@{address}"), RedisSettings())
    with pytest.raises(StateUnavailable, match="refuses this user or password") as caught:
        await pool.ping()
    assert SECRET not in str(caught.value) + repr(pool) + repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "url",
    [f"http://:{SECRET}@host", f"redis://:{SECRET}@host:port", f"redis://:{SECRET}@[x", SECRET],
)
def test_an_unusable_url_is_refused_without_telling_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisPool(SecretStr(url), RedisSettings())
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_rediss_speaks_tls() -> None:
    hello: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(3)
        if not hello.done():
            hello.set_result(first)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = RedisPool(SecretStr(f"rediss://:{SECRET}@127.0.0.1:{port}/0"), RedisSettings())
    with pytest.raises(StateUnavailable, match="can't be reached"):
        await pool.ping()
    assert (await hello)[:2] == bytes([22, ssl.TLSVersion.TLSv1 >> 8])  # a TLS handshake record
    server.close()


async def test_without_url_and_server_the_error_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="PARLEY_REDIS_URL"):
        RedisPool.open(RedisSettings(), tmp_path)


async def test_the_local_server_is_found_through_home(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    pool = RedisPool.open(RedisSettings(), tmp_path / "home")
    await pool.ping()
    await pool.close()


async def test_calls_and_failures_are_counted_by_what_they_are_for(
    own_redis: RedisServer,
) -> None:
    def calls(operation: str) -> tuple[float, float]:
        counted = metrics.REDIS_SECONDS.labels(operation)._buckets
        failed = metrics.REDIS_FAILURES.labels(operation)._value
        return sum(bucket.get() for bucket in counted), failed.get()

    pool = pool_of(own_redis)
    before = calls("profile"), calls("begin")
    async with pool.client("profile") as client:
        await client.get("a")
    own_redis.stop()
    with pytest.raises(StateUnavailable):
        async with pool.client("profile") as client:
            await client.get("a")
    (counted, failed), other = before
    assert calls("profile") == (counted + 2, failed + 1)
    assert calls("begin") == other
    await pool.close()
