"""The deploy file on a Ray cluster that somebody else has started, with Serve's own command."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cluster_home import ClusterHome, processes_of, wait_for
from otlp_receiver import Receiver, otlp_receiver
from streaming import DONE, Stream, talking

from serve_app.cluster.ports import free_ports
from serve_app.cluster.processes import MARK, end_marked
from serve_app.cluster.serve_api import ServeApi
from serve_app.errors import ConfigError
from serve_app.models.store import PreparedModel
from serve_app.settings import deploy_folder
from serve_app.state.keys import KeyRing

END_S = 120.0
# Places of the ingress, slots and queue of the generator: small, so that a test can fill them.
PLACES, SLOTS, QUEUED = 6, 2, 2
# The model's answer is the same on every CPU, however its kernels round.
QUESTION = "Complete this sentence: The capital of France is"


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray head node, started by hand.

    Attributes:
        home: PARLEY_HOME of its processes, whose Redis runs.
        environment: what they were started with.
        dashboard: URL of Ray's REST interface.
        mark: found in the environment of every process of it.
        logs: folder of what Serve's parts write.
        spans: what its replicas trace.
    """

    home: ClusterHome
    environment: dict[str, str]
    dashboard: str
    mark: str
    logs: Path
    spans: Receiver

    def lines(self, deployment: str) -> list[dict[str, Any]]:
        """Return the lines that a deployment's replicas have written as JSON."""
        files = self.logs.glob(f"replica_parley_{deployment}_*.log")
        lines = [line for file in files for line in file.read_text().splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def command(self, name: str, *arguments: str) -> str:
        """Run one of Ray's commands and return what it says."""
        done = subprocess.run(
            [Path(sys.executable).with_name(name), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def serves(self) -> dict[str, Any]:
        """Return what Serve says of the application, {} while it says nothing.

        Serve's command says the same, and takes seconds of a processor each time.
        """
        token = self.home.folder.token_file.read_text().strip()
        with suppress(ConfigError), ServeApi(self.dashboard, token) as serve:
            applications: dict[str, dict[str, Any]] = serve.details()["applications"]
            return applications.get("parley", {})
        return {}

    def deploy(self, host: str = "127.0.0.1", name: str = "local", **changed: Any) -> None:
        """Deploy a file that ships on a free port, with some sections of `args` changed."""
        config = yaml.safe_load((deploy_folder() / f"{name}.yaml").read_text())
        config["http_options"] |= {"host": host, "port": self.home.port}
        for section, values in changed.items():
            config["applications"][0]["args"].setdefault(section, {}).update(values)
        file = self.home.path / "deploy.yaml"
        file.write_text(yaml.safe_dump(config))
        self.command("serve", "deploy", str(file), "--address", self.dashboard)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def ray_cluster(new_home: Callable[[], ClusterHome], receiver: Receiver) -> Iterator[RayCluster]:
    home = new_home()
    home.folder.create()
    redis = home.redis.start()
    mark = uuid.uuid4().hex
    work = home.folder.work_folder()
    gcs, dashboard, agent, client, metrics, stats, fallback = free_ports(7)
    # As the command `parley-haproxy` does.
    launcher = work / "haproxy"
    launcher.write_text(
        f'#!/bin/sh\nexec {sys.executable} -P -m serve_app.cluster.haproxy_launcher "$@"\n'
    )
    launcher.chmod(0o700)
    environment = {
        **home.environment,
        MARK: mark,
        "SPT_NOENV": "1",
        "PARLEY_REDIS_URL": redis.get_secret_value(),
        "PARLEY_INGRESS_MAX_CONCURRENT": str(PLACES),
        "PARLEY_GENERATOR_SLOTS": str(SLOTS),
        "PARLEY_GENERATOR_MAX_QUEUED": str(QUEUED),
        "PARLEY_GENERATOR_DRAIN_TIMEOUT_S": "1",
        "PARLEY_TELEMETRY_TRACES": "true",
        "PARLEY_TELEMETRY_TRACE_ENDPOINT": receiver.endpoint,
        "PARLEY_TELEMETRY_LOG_FORMAT": "json",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.folder.token_file),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        # The rest keeps it apart from other clusters on this machine.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(work / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(work / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(work),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(work / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(work / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
    }
    cluster = RayCluster(
        home,
        environment,
        f"http://127.0.0.1:{dashboard}",
        mark,
        work / "ray" / "session_latest" / "logs" / "serve",
        receiver,
    )
    try:
        made = home.run("data", "rotate")  # what docs/operating.md has you do first
        assert made.returncode == 0, made.stdout + made.stderr
        cluster.command(
            "ray",
            # Room for the replicas of several models, old and new ones.
            *("start", "--head", "--disable-usage-stats", "--num-cpus", "6"),
            *("--port", str(gcs), "--dashboard-port", str(dashboard)),
            *("--dashboard-agent-listen-port", str(agent)),
            *("--ray-client-server-port", str(client)),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--temp-dir", str(work / "ray"), "--object-store-memory", "200000000"),
        )
        cluster.deploy()
        wait_for(lambda: home.ready().get("status") == "ready")
        yield cluster
    finally:
        end_marked(mark, grace_s=2)
        home.redis.stop()


async def test_serve_deploy_takes_the_file_and_it_serves(ray_cluster: RayCluster) -> None:
    with ray_cluster.home.client() as client:
        reply = client.chat.completions.create(
            model=ray_cluster.home.model(),
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=16,
        )
    assert "Paris" in (reply.choices[0].message.content or "")
    said = ray_cluster.command("serve", "status", "--address", ray_cluster.dashboard)
    assert yaml.safe_load(said)["applications"]["parley"]["status"] == "RUNNING"


async def test_one_requests_spans_come_from_all_deployments(
    ray_cluster: RayCluster,
) -> None:
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    home, spans = ray_cluster.home, ray_cluster.spans
    with home.client() as client:
        reply = client.responses.create(
            model=home.model(),
            input="My secret wish is to see whales.",
            max_output_tokens=8,
            extra_headers={"traceparent": f"00-{trace}-{caller}-01"},
        )
    names = {"POST /v1/responses", "generate", "decode", "tokenizer.encode_chat"}
    names |= {"redis begin_turn", "redis commit_turn", "dialogue.plan", "dialogue.commit"}
    wait_for(lambda: names <= spans.trace(trace).keys())
    found = spans.trace(trace)
    assert {found[name].service for name in names} == {
        "parley-ingress",
        "parley-dialogue",
        "parley-tokenizer",
        "parley-generator",
    }
    assert found["POST /v1/responses"].parent == caller
    assert found["tokenizer.encode_chat"].parent == found["dialogue.plan"].id
    assert found["dialogue.plan"].parent == found["POST /v1/responses"].id
    chat = found[f"chat {home.model()}"]
    assert found["generate"].parent == chat.id
    assert reply.id in chat.attributes["gen_ai.response.id"]
    assert b"secret wish" not in b"".join(spans.raw)


async def test_overload_is_refused_at_once_and_the_others_finish(ray_cluster: RayCluster) -> None:
    async with talking(ray_cluster.home.url) as talk:
        model = await talk.model()
        # Long enough to run until all others have come.
        running = [talk.chat(model, f"Tell me story {n}.", 600) for n in range(SLOTS)]
        for stream in running:
            await stream.runs()
        queued = [talk.chat(model, f"Tell me joke {n}.", 4) for n in range(QUEUED)]
        await until(lambda: ray_cluster.home.generator("waiting") == QUEUED)
        # More than the queue has room for, and more than the ingress has places.
        refused = [talk.chat(model, f"Tell me riddle {n}.", 4) for n in range(2 * PLACES)]
        for stream in refused:
            assert await stream.ends(END_S) == "overloaded"
            response = stream.response
            assert response is not None
            assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
            assert int(response.headers["retry-after"]) >= 1
        assert [stream.end for stream in running] == [None] * SLOTS
        assert [await stream.ends(END_S) for stream in running + queued] == [DONE] * len(
            running + queued
        )
        assert await talk.chat(model, "Is there room again?", 4).ends(END_S) == DONE


async def test_without_redis_only_what_needs_it_is_refused(ray_cluster: RayCluster) -> None:
    home = ray_cluster.home
    async with talking(home.url) as talk:
        model = await talk.model()
        created = await talk.client.post("/v1/conversations", json={})
        conversation = created.json()["id"]
        pid = home.redis.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await talk.chat(model, "Hello.", 4).ends(END_S) == DONE
        turn = talk.turn(model, conversation, "Hello.", 4)
        assert await turn.ends(END_S) == "state_unavailable"
        await until(lambda: home.ready().get("status") == "degraded")
        await until(
            lambda: any(
                line["deployment"] == "Dialogue" and line["message"].startswith("Redis at ")
                for line in ray_cluster.lines("Dialogue")
            )
        )
        home.redis.start()
        assert await talk.turn(model, conversation, "Hello.", 4).ends(END_S) == DONE
        await until(lambda: home.ready().get("status") == "ready")


async def test_running_replies_go_on_when_a_changed_file_is_deployed(
    ray_cluster: RayCluster,
) -> None:
    home = ray_cluster.home
    async with talking(home.url) as talk:
        model = await talk.model()
        ends: list[str] = []
        enough = asyncio.Event()

        async def ask(number: int) -> None:
            while not enough.is_set():
                ends.append(await talk.chat(model, f"Tell me story {number}.", 400).ends(END_S))

        async with asyncio.TaskGroup() as asking:
            for number in range(SLOTS + 1):  # one waits, so that some reply always has long to go
                asking.create_task(ask(number))
            await until(lambda: home.generator("running") == SLOTS)
            await asyncio.to_thread(ray_cluster.deploy, sampling={"temperature": 0.75})
            # The old generator has no time to end them and hands them to the new one.
            await until(lambda: handed_back(home) >= 1)
            enough.set()
        assert {*ends} == {DONE}
    await until(lambda: temperature(home, model) == 0.75)


async def test_a_model_and_a_pool_that_join_under_load_cost_no_request(
    ray_cluster: RayCluster,
    bundled_fp32: PreparedModel,  # prepared, so that replicas need not
) -> None:
    home = ray_cluster.home
    async with talking(home.url) as talk:
        model = await talk.model()
        created = await talk.client.post("/v1/conversations", json={})
        begin = (
            lambda n: talk.chat(model, f"Tell me story {n}.", 24),
            lambda n: talk.chat(model, f"Tell me joke {n}.", 48),
            lambda n: talk.turn(model, created.json()["id"], f"And {n}?", 24),
        )
        ends: list[str] = []
        enough = asyncio.Event()

        async def ask(one: Callable[[int], Stream]) -> None:
            number = 0
            while not enough.is_set():
                ends.append(await one(number := number + 1).ends(END_S))

        async with asyncio.TaskGroup() as asking:
            for one in begin:
                asking.create_task(ask(one))
            await until(lambda: len(ends) > len(begin))
            await asyncio.to_thread(
                ray_cluster.deploy,
                name="several-models",
                models={"pools": {"second": {"precision": "fp32", "generator": {"slots": SLOTS}}}},
            )
            before = len(ends)
            await until(lambda: updated(ray_cluster))
            during = len(ends) - before
            await until(lambda: len(ends) > before + during + len(begin))
            enough.set()
        assert {*ends} == {DONE}
        assert during > len(begin)
    with home.client() as client:
        assert [listed.id for listed in client.models.list().data] == [model, "unrounded"]
        for name in (model, "unrounded"):
            reply = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": QUESTION}],
                temperature=0,
                max_tokens=16,
            )
            assert "Paris" in (reply.choices[0].message.content or "")


# It goes on with what the test before has deployed.
async def test_two_pools_share_a_model_s_load_and_one_takes_over_from_the_other(
    ray_cluster: RayCluster,
) -> None:
    home = ray_cluster.home
    await until(lambda: pools(home) == {"Generator": 0, "Generator-second": 0})
    async with talking(home.url) as talk:
        model = await talk.model()
        streams = []
        for n in range(2 * SLOTS):  # one after the other, so that each finds where there is room
            streams.append(talk.chat(model, f"Tell me story {n}.", 600))
            await streams[-1].runs()
        await until(lambda: pools(home) == {"Generator": SLOTS, "Generator-second": SLOTS})
        (second,) = processes_of(ray_cluster.mark, "ray::ServeReplica:parley:Generator-second")
        second.kill()
        assert [await stream.ends(END_S) for stream in streams] == [DONE] * len(streams)
        figures = (await talk.client.get("/metrics")).text
        assert f'parley_stream_moves_total{{cause="lost"}} {SLOTS}.0' in figures
        # The other one alone serves until it is back.
        assert await talk.chat(model, "Hello.", 4).ends(END_S) == DONE
    await until(lambda: pools(home) == {"Generator": 0, "Generator-second": 0})


async def until(condition: Callable[[], bool]) -> None:
    """Wait while the streams are read on."""
    await asyncio.to_thread(wait_for, condition)


# The last one, for it takes down what the others use.
def test_serve_deploy_can_not_open_a_door_where_nobody_is_asked_for_a_key(
    ray_cluster: RayCluster,
) -> None:
    KeyRing(ray_cluster.home.path / "keys.json").create("me", "default")
    ray_cluster.command("serve", "shutdown", "--yes", "--address", ray_cluster.dashboard)
    # Serve takes a new address only when it starts anew, and nothing at all while it ends.
    wait_for(lambda: not processes_of(ray_cluster.mark, "ray::ServeController"))
    ray_cluster.deploy(host="0.0.0.0", auth={"required": False})  # noqa: S104
    wait_for(lambda: "auth.required is false" in json.dumps(ray_cluster.serves()))
    # Asking it would only wait for an answer that never comes.
    replicas = ray_cluster.serves()["deployments"]["Ingress"]["replicas"]
    assert "RUNNING" not in {replica["state"] for replica in replicas}


def updated(cluster: RayCluster) -> bool:
    """Return whether all that was deployed runs, and nothing of what was there before."""
    application = cluster.serves()
    states = {each["status"] for each in application.get("deployments", {}).values()}
    return application.get("status") == "RUNNING" and states == {"HEALTHY"}


def pools(home: ClusterHome) -> dict[str, float]:
    """Return the streams of each pool of the first model that has a replica."""
    match home.ready():
        case {"model": str(first), "models": {**models}}:
            return {
                name: pool["streams"] for name, pool in models[first].items() if pool["replicas"]
            }
    return {}


def handed_back(home: ClusterHome) -> float:
    """Return how many streams went on elsewhere because their generator stops, 0 while nothing answers."""
    try:
        figures = httpx.get(f"{home.url}/metrics", timeout=10).text
    except httpx.TransportError:
        return 0.0
    found = re.search(r'^parley_stream_moves_total{cause="handed_back"} (.*)', figures, re.M)
    return float(found[1]) if found else 0.0


def temperature(home: ClusterHome, model: str) -> float | None:
    """Return what applies where a request doesn't say, or None while replicas are exchanged."""
    body = {"model": model, "input": "Hi", "max_output_tokens": 1}
    try:
        answer = httpx.post(f"{home.url}/v1/responses", json=body, timeout=10)
    except httpx.TransportError:
        return None
    return answer.json()["temperature"] if answer.status_code == httpx.codes.OK else None
