"""`kill -9` of each process in turn: no client hangs, and the service comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil
import pytest
from cluster_home import ClusterHome, kill, wait_for
from streaming import CLOSED, DONE, SILENT, Talk, talking

from serve_app.cluster.haproxy_keeper import STANDBY

STREAMS = 4
# Replies that may end as if nothing had happened, and ones that are not done before the kill.
TOKENS, MANY_TOKENS = 150, 1500
# Far longer than a stream takes, far shorter than any time limit of the service.
END_S = 60.0
RECOVERY_S = 90.0
STANDS_IN_S = 5.0
DAMAGE = 16  # bytes


@dataclass(frozen=True, slots=True)
class Victim:
    """A kind of process.

    Attributes:
        title: how its title, or the name of its executable, begins.
        ends: how the streams that are being read may end when it dies.
    """

    title: str
    ends: frozenset[str]


VICTIMS = {
    # They go on with the one that takes its place.
    "generator": Victim("ray::ServeReplica:parley:Generator", frozenset({DONE})),
    # Streams that run have these two behind them.
    "dialogue": Victim("ray::ServeReplica:parley:Dialogue", frozenset({DONE})),
    "tokenizer": Victim("ray::ServeReplica:parley:Tokenizer", frozenset({DONE})),
    # Nobody is left to send an event; the connection breaks, which every client notices.
    "ingress": Victim("ray::ServeReplica:parley:Ingress", frozenset({CLOSED})),
    "haproxy": Victim("haproxy", frozenset({CLOSED})),
    # HAProxy may outlive its manager for as long as the next one takes to come.
    "haproxy's manager": Victim("ray::HAProxyManager", frozenset({CLOSED, DONE})),
    "serve's proxy": Victim("ray::ProxyActor", frozenset({DONE})),
    "serve's controller": Victim("ray::ServeController", frozenset({DONE})),
    "redis": Victim("redis-server", frozenset({DONE})),
}


@pytest.mark.parametrize("kind", list(VICTIMS))
async def test_no_client_hangs_and_the_service_comes_back(cluster: ClusterHome, kind: str) -> None:
    victim = VICTIMS[kind]
    async with talking(cluster.url) as talk:
        model = await talk.model()
        created = await talk.client.post("/v1/conversations", json={})
        conversation = created.json()["id"]
        tokens = MANY_TOKENS if CLOSED in victim.ends else TOKENS
        ends = await ends_after_killing(cluster, victim.title, talk, model, tokens)
    # A turn needs every part; that its conversation is known, what Redis had stored before.
    await comes(lambda: answers(cluster, model, conversation))
    # The next test may need the same process.
    await comes(lambda: bool(cluster.processes(victim.title)))
    assert set(ends) <= victim.ends


async def test_without_its_haproxy_the_service_is_away_for_a_moment_and_never_unknown(
    cluster: ClusterHome,
) -> None:
    def status() -> int | None:
        try:
            return httpx.get(f"{cluster.url}/v1/models", timeout=10, trust_env=False).status_code
        except httpx.TransportError:
            return None

    def serves_own() -> bool:
        """Say whether Serve's own is back, and the standby gone."""
        with suppress(psutil.NoSuchProcess):
            return [STANDBY in " ".join(one.cmdline()) for one in cluster.processes("haproxy")] == [
                False
            ]
        return False

    for victim in cluster.processes("haproxy"):
        victim.kill()
    await asyncio.to_thread(wait_for, lambda: status() == httpx.codes.OK, STANDS_IN_S)
    seen = set()

    def watched() -> bool:
        seen.add(status())
        return serves_own()

    await comes(watched)
    assert seen == {httpx.codes.OK}


async def test_a_redis_that_cannot_start_again_costs_only_conversations(
    cluster: ClusterHome,
) -> None:
    async with talking(cluster.url) as talk:
        model = await talk.model()
        created = await talk.client.post("/v1/conversations", json={})
        conversation = created.json()["id"]
        log = next((cluster.path / "redis").rglob("*.aof"))
        with log.open("r+b") as file:
            beginning = file.read(DAMAGE)
            file.seek(0)
            file.write(b"?" * DAMAGE)
        for redis in cluster.processes("redis-server"):
            redis.kill()
        await comes(cluster.folder.redis_trouble.exists)
        assert await talk.chat(model, "Hello.", 4).ends(END_S) == DONE
        turn = talk.turn(model, conversation, "Hello.", 4)
        assert await turn.ends(END_S) == "state_unavailable"
    seen = await asyncio.to_thread(cluster.run, "status")
    assert seen.returncode == 1
    assert "Redis is away: Redis ended at once: Bad file format" in seen.stdout
    with log.open("r+b") as file:
        file.write(beginning)
    await comes(lambda: answers(cluster, model, conversation))
    assert not cluster.folder.redis_trouble.exists()


async def test_without_its_guard_the_service_goes_on(cluster: ClusterHome) -> None:
    async with talking(cluster.url) as talk:
        (guard,) = (
            process
            for process in psutil.process_iter(["cmdline"])
            if {"serve_app.cluster.guard", str(cluster.path)} <= set(process.info["cmdline"] or ())
        )
        await asyncio.to_thread(kill, guard)
        assert await talk.chat(await talk.model(), "Hello.", 4).ends(END_S) == DONE


@pytest.mark.parametrize(
    "daemons",
    [
        # Without the first, the run is ended before long, and by then the second must be dead.
        (("gcs_server", 60), ("raylet", TOKENS)),
        # The raylet doesn't outlive its agents.
        (("ray::DashboardAgent", TOKENS),),
        (("ray::RuntimeEnvAgent", TOKENS),),
    ],
    ids=["daemons", "dashboard agent", "environment agent"],
)
async def test_when_ray_itself_dies_nobody_hangs_and_down_cleans_up(
    new_home: Callable[[], ClusterHome], daemons: tuple[tuple[str, int], ...]
) -> None:
    home = new_home()
    home.up()
    run_id = home.state().run_id
    async with talking(home.url) as talk:
        model = await talk.model()
        for daemon, tokens in daemons:
            ends = await ends_after_killing(home, daemon, talk, model, tokens)
            assert SILENT not in ends
    async with talking(home.url) as talk:
        assert await talk.chat(model, "Is anybody there?", 4).ends(END_S) != SILENT
    seen = home.run("status")
    assert seen.returncode == 1, seen.stdout
    down = home.run("down")
    assert down.returncode == 0, down.stderr
    home.assert_nothing_runs(run_id)


async def ends_after_killing(
    cluster: ClusterHome, title: str, talk: Talk, model: str, tokens: int
) -> list[str]:
    """Kill a kind of process while streams run, and return how these end; fail if one doesn't."""
    # Looked up before the streams run, for it takes a while. All of them: a reload leaves an older
    # HAProxy to end what goes through it.
    victims = cluster.processes(title)
    assert victims
    streams = [talk.chat(model, f"Tell me story {n}.", tokens) for n in range(STREAMS)]
    for stream in streams:
        await stream.runs()
    for victim in victims:
        victim.kill()
    return [await stream.ends(END_S) for stream in streams]


async def comes(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_for, condition, RECOVERY_S)


def answers(cluster: ClusterHome, model: str, conversation: str) -> bool:
    turn = {"model": model, "conversation": conversation, "input": "Hi", "max_output_tokens": 2}
    try:
        answer = httpx.post(f"{cluster.url}/v1/responses", json=turn, timeout=10)
    except httpx.TransportError:
        return False
    return answer.status_code == httpx.codes.OK
