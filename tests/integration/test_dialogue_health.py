"""The Dialogue's health check: a Redis that is away is not its fault, a pool that lost Redis is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.constants import HEALTH_CHECK_METHOD

from serve_app.dialogue import deployment
from serve_app.models.store import PreparedModel
from serve_app.routing.pools import FIRST
from serve_app.settings import Settings
from serve_app.state.sealing import KeyFile
from serve_app.state.server import RedisServer


@pytest.fixture
def replica(
    own_redis: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bundled_int8: PreparedModel,
) -> Any:
    """The deployment as Serve constructs it, with a single connection in its pool; without Ray."""
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(deployment, "listen_on_node_address", lambda: None)
    monkeypatch.setattr(deployment, "served_model", lambda _: bundled_int8)
    KeyFile(tmp_path / "home" / "encryption.json").ensure()
    settings = Settings.load({"redis": {"pool_size": 1, "timeout_s": 0.5}})
    return deployment.Dialogue.func_or_class(settings, {FIRST: SimpleNamespace()})  # type: ignore[attr-defined]


async def check(replica: Any) -> None:
    """Ask as Serve does."""
    await getattr(replica, HEALTH_CHECK_METHOD)()


async def test_a_redis_that_died_or_hangs_is_not_the_replicas_fault(
    replica: Any, own_redis: RedisServer
) -> None:
    await check(replica)
    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await check(replica)
    os.kill(pid, signal.SIGCONT)
    await check(replica)
    own_redis.stop()
    assert not await replica.state_reachable()
    await check(replica)
    own_redis.start()
    assert await replica.state_reachable()
    await check(replica)


async def test_a_replica_whose_pool_has_lost_its_connections_has_to_be_replaced(
    replica: Any,
) -> None:
    pool = replica._redis._client.connection_pool
    lost = await pool.get_connection()
    assert not await replica.state_reachable()
    with pytest.raises(RuntimeError, match="not through this replica's pool"):
        await check(replica)
    await pool.release(lost)
    await check(replica)
