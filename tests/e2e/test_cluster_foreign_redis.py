"""A cluster on somebody else's Redis: conversations lie there, and its life is left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_home import ClusterHome, wait_for
from streaming import DONE, talking

from serve_app.cluster.processes import marked_processes
from serve_app.state.server import RedisServer

END_S = 90.0


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis behind a password, which no run has started."""
    server = RedisServer(tmp_path / "elsewhere")
    server.start()
    yield server
    server.stop()


async def test_conversations_there_survive_kill_9_of_up_and_down_and_so_does_that_redis(
    new_home: Callable[[], ClusterHome], foreign: RedisServer
) -> None:
    home = new_home()
    url, pid = foreign.url(), foreign.pid
    assert url is not None
    home.environment["PARLEY_REDIS_URL"] = url.get_secret_value()
    with home.attended() as up:
        run_id = home.state().run_id
        async with talking(home.url) as talk:
            model = await talk.model()
            created = await talk.client.post("/v1/conversations", json={})
            conversation = created.json()["id"]
            stream = talk.turn(model, conversation, "Tell me a long story about a fox.", 200)
            await stream.runs()
            up.kill()
            assert await stream.ends(END_S) == DONE
        await asyncio.to_thread(wait_for, lambda: home.folder.state() is None)
    assert marked_processes(run_id) == []
    assert (foreign.running(), foreign.pid) == (url, pid)

    await asyncio.to_thread(home.up)
    run_id = home.state().run_id
    async with talking(home.url) as talk:
        items = await talk.client.get(f"/v1/conversations/{conversation}/items?order=asc")
    assert [item["content"][0]["text"] for item in items.json()["data"]] == [
        "Tell me a long story about a fox.",
        stream.text,
    ]
    shown = await asyncio.to_thread(home.run, "status", "--json")
    assert shown.returncode == 0, shown.stdout
    assert json.loads(shown.stdout)["redis"] == "external"
    down = await asyncio.to_thread(home.run, "down")
    assert down.returncode == 0, down.stderr
    assert marked_processes(run_id) == []
    assert (foreign.running(), foreign.pid) == (url, pid)
    assert not (home.path / "redis").exists()
