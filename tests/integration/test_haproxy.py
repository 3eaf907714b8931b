"""Serve's own code and a real HAProxy, with the launcher and the keeper of `parley up` between them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from ray.serve._private import haproxy
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serve_app.cluster.ports import free_ports
from serve_app.cluster.processes import MARK, end_marked, marked_processes
from serve_app.cluster.ray_head import RayHead, RayPorts
from serve_app.cluster.run_folder import RunFolder
from serve_app.settings import Settings

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SLOWLY = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfirst"
GONE_S = 15.0
# Serve takes seconds to start its own; the standby, whatever a process takes on a busy machine.
STANDS_IN_S = 5.0


@dataclass
class Replica:
    """A server with what HAProxy asks for.

    Attributes:
        port: where it listens.
        dies: takes requests and breaks the connection without a word.
        asked: paths that it was asked for.
        goes_on: what a slow reply waits for in its middle.
    """

    port: int = 0
    dies: bool = False
    asked: list[str] = field(default_factory=list)
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                if path != "/-/healthz":
                    self.asked.append(path)
                    if self.dies:
                        break
                if path == "/slowly":
                    writer.write(SLOWLY)
                    await self.goes_on.wait()
                    writer.write(b"last")
                    break
                writer.write(REPLY)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@dataclass
class Front:
    """Where Serve's HAProxy stands.

    Attributes:
        folder: its files.
        port: where it listens.
        ports: of the run; its own two count.
        replicas: behind it.
        mark: of all its processes.
    """

    folder: Path
    port: int
    ports: RayPorts
    replicas: list[Replica]
    mark: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self) -> HAProxyApi:
        """Return what a new manager of Serve's has: no application yet."""
        config = HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=self.port),
            socket_path=str(self.folder / "admin.sock"),
            server_state_base=str(self.folder),
            server_state_file=str(self.folder / "server-state"),
            metrics_socket_path=str(self.folder / "metrics.sock"),
            metrics_port=self.ports.proxy_metrics,
            stats_port=self.ports.proxy_stats,
            is_head=True,
        )
        return HAProxyApi(config, config_file_path=str(self.folder / "haproxy.cfg"))

    def application(self) -> dict[str, BackendConfig]:
        servers = [
            ServerConfig(f"replica-{n}", "127.0.0.1", replica.port)
            for n, replica in enumerate(self.replicas)
        ]
        return {
            "http-parley": BackendConfig("http-parley", "/", servers=servers, app_name="parley")
        }

    async def deployed(self) -> HAProxyApi:
        api = self.serve()
        await api.start()
        api.set_backend_configs(self.application())
        await api.reload()
        return api

    def haproxies(self, config: str = "") -> list[psutil.Process]:
        """Return those that run, or those of them that have a certain configuration."""
        return [
            process
            for process in marked_processes(self.mark)
            if process.name() == "haproxy" and config in " ".join(process.cmdline())
        ]

    def kill(self) -> None:
        """Kill every HAProxy that there is."""
        for process in self.haproxies():
            process.kill()


@pytest.fixture
async def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    folder = RunFolder(tmp_path / "home")
    folder.create()
    port, metrics, stats = free_ports(3)
    ports = RayPorts(1, 2, 3, metrics, stats, 6)
    mark = f"front-{os.getpid()}-{port}"
    (tmp_path / "w").mkdir()
    environment = RayHead(folder, tmp_path / "w", ports, cpus=2).environment(
        mark, Settings.load(), "redis://"
    )
    monkeypatch.setenv(MARK, mark)
    launcher = "RAY_SERVE_HAPROXY_BINARY_PATH"
    monkeypatch.setenv(launcher, environment[launcher])
    monkeypatch.setattr(haproxy, launcher, environment[launcher])
    replicas, servers = [Replica(), Replica()], []
    for replica in replicas:
        server = await asyncio.start_server(replica.answer, "127.0.0.1", 0)
        replica.port = server.sockets[0].getsockname()[1]
        servers.append(server)
    work = tmp_path / "h"
    work.mkdir()
    try:
        yield Front(work, port, ports, replicas, mark)
    finally:
        await asyncio.to_thread(end_marked, mark, grace_s=1)
        for server in servers:
            server.close()


async def gone(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + GONE_S
    while condition():
        assert time.monotonic() < deadline, "it is still there"
        await asyncio.sleep(0.02)


@dataclass
class Visitor:
    """A client that asks without a pause, with a new connection each time.

    Attributes:
        url: what it asks for.
        seen: statuses and kinds of errors, as they came.
    """

    url: str
    seen: list[int | str] = field(default_factory=list)

    async def ask(self, method: str = "GET") -> int | str:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
                answer = await client.request(method, self.url)
                return answer.status_code
        except httpx.TransportError as error:
            return type(error).__name__

    async def visit(self) -> None:
        while True:
            self.seen.append(await self.ask())

    async def answered(self) -> float:
        """Return how long it took until an answer came, in seconds."""
        began = time.monotonic()
        while await self.ask() != 200:
            assert time.monotonic() - began < GONE_S
            await asyncio.sleep(0.01)
        return time.monotonic() - began


async def test_a_standby_takes_the_place_of_a_killed_haproxy_until_serves_own_is_back(
    front: Front,
) -> None:
    await front.deployed()
    visitor = Visitor(front.url)
    assert await visitor.ask() == 200
    await asyncio.to_thread(front.kill)
    assert await visitor.answered() < STANDS_IN_S
    (standby,) = front.haproxies("standby.cfg")

    visiting = asyncio.create_task(visitor.visit())
    api = front.serve()  # as Serve does: a new manager, which knows no application
    await api.start()
    await gone(standby.is_running)
    api.set_backend_configs(front.application())
    await api.reload()
    visiting.cancel()
    assert set(visitor.seen) == {200}
    assert front.haproxies("haproxy.cfg")


async def test_streams_through_a_standby_outlive_serves_return(front: Front) -> None:
    await front.deployed()
    await asyncio.to_thread(front.kill)
    await Visitor(front.url).answered()
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(b"GET /slowly HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"first")).startswith(b"HTTP/1.1 200")
    await front.deployed()
    writer.write(b"")
    for replica in front.replicas:
        replica.goes_on.set()
    assert await asyncio.wait_for(reader.readuntil(b"last"), GONE_S)
    writer.close()
    await gone(lambda: front.haproxies("standby.cfg"))


async def test_a_standby_that_is_killed_is_replaced_too(front: Front) -> None:
    await front.deployed()
    visitor = Visitor(front.url)
    for _ in range(3):
        await asyncio.to_thread(front.kill)
        assert await visitor.answered() < STANDS_IN_S
    assert len(front.haproxies()) == 1


async def test_the_keeper_notices_the_death_of_the_newest_while_an_older_one_drains(
    front: Front,
) -> None:
    api = await front.deployed()
    _, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(b"GET /slowly HTTP/1.1\r\nhost: x\r\n\r\n")
    await gone(lambda: not any(one.asked for one in front.replicas))
    await api.reload()
    older, newest = sorted(front.haproxies(), key=lambda one: one.create_time())
    newest.kill()
    assert await Visitor(front.url).answered() < STANDS_IN_S
    assert older.is_running()
    writer.close()


async def test_without_an_application_clients_are_told_to_wait_and_never_of_unknown_paths(
    front: Front,
) -> None:
    api = front.serve()
    await api.start()
    async with httpx.AsyncClient(base_url=front.url, trust_env=False) as client:

        async def assert_told_to_wait() -> None:
            for path in ("/ready", "/v1/models"):
                answer = await client.get(path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert answer.json()["error"]["code"] == "overloaded"

        await assert_told_to_wait()
        api.set_backend_configs(front.application())
        await api.reload()
        await Visitor(front.url).answered()
        api.set_backend_configs({})
        await api.reload()
        await assert_told_to_wait()
    # What was taken away on purpose isn't served by a standby either.
    await asyncio.to_thread(front.kill)
    await gone(front.haproxies)
    await gone(lambda: marked_processes(front.mark))


async def test_nothing_outlives_rays_node(front: Front) -> None:
    # Ray's node manager, Serve's manager, and what that starts.
    tree = "import signal, subprocess, sys; subprocess.run(sys.argv[1:]); signal.pause()"
    script = haproxy.RAY_SERVE_HAPROXY_BINARY_PATH
    api = front.serve()
    api.set_backend_configs(front.application())
    api._generate_config_file_internal()
    python = (sys.executable, "-c", tree)
    node = await asyncio.create_subprocess_exec(
        *python, *python, script, "-db", "-f", api.config_file_path
    )
    visitor = Visitor(front.url)
    await visitor.answered()
    await asyncio.to_thread(front.kill)
    await visitor.answered()
    node.kill()
    await node.wait()
    await gone(front.haproxies)
    # Serve's manager is nobody's here.
    await gone(lambda: len(marked_processes(front.mark)) > 1)


async def test_a_stateless_request_whose_replica_dies_unheard_is_answered_by_another(
    front: Front,
) -> None:
    await front.deployed()
    front.replicas[0].dies = True
    for _ in range(4):
        assert await Visitor(f"{front.url}/v1/chat/completions").ask("POST") == 200
    assert front.replicas[0].asked


async def test_what_may_have_been_stored_is_not_sent_to_another_replica(front: Front) -> None:
    await front.deployed()
    for replica in front.replicas:
        replica.dies = True
    assert await Visitor(f"{front.url}/v1/responses").ask("POST") == 503
    assert sum(len(replica.asked) for replica in front.replicas) == 1


async def test_the_command_for_other_ray_clusters_finds_haproxy_and_not_itself(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "parley-haproxy"
    module = "serve_app.cluster.haproxy_launcher"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m {module} "$@"\n')
    command.chmod(0o700)
    launcher = "RAY_SERVE_HAPROXY_BINARY_PATH"
    monkeypatch.setenv(launcher, str(command))
    monkeypatch.setattr(haproxy, launcher, str(command))
    await front.deployed()
    await asyncio.to_thread(front.kill)
    assert await Visitor(front.url).answered() < STANDS_IN_S
