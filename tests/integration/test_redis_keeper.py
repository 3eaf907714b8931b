"""A run whose own Redis dies goes on, says so, and gets it back as soon as it can start."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.cluster import launch, redis_keeper
from serve_app.cluster.redis_keeper import RedisKeeper
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.cluster.steps import Quiet
from serve_app.state.server import RedisServer


class Notes(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(
        redis_keeper, "time", SimpleNamespace(monotonic=made.monotonic, sleep=made.slept.append)
    )
    return made


@pytest.fixture
def folder(own_redis: RedisServer, tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "home")
    made.create()
    return made


def kill(server: RedisServer) -> None:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    server._process.wait()  # type: ignore[union-attr]


def damage(folder: RunFolder) -> None:
    """Spoil what Redis has stored, so that it refuses to start."""
    for log in (folder.home / "redis").rglob("*.aof"):
        log.write_bytes(b"no such thing" * 100)


def mend(folder: RunFolder) -> None:
    for log in (folder.home / "redis").rglob("*.aof"):
        log.write_bytes(b"")


def test_a_redis_that_died_is_started_where_its_clients_look_for_it(
    folder: RunFolder, own_redis: RedisServer
) -> None:
    notes = Notes()
    keeper = RedisKeeper(folder, notes)
    before = own_redis.running()
    keeper.look()
    assert notes.texts == []
    kill(own_redis)
    keeper.look()
    assert own_redis.running() == before
    assert notes.texts == ["Redis is gone; starting it again with what it had stored."]


def test_the_death_of_redis_ends_the_wait_for_it_and_its_absence_does_not(
    folder: RunFolder, own_redis: RedisServer, clock: Clock
) -> None:
    keeper = RedisKeeper(folder, Notes())
    keeper.look()
    keeper.wait(0.01)
    killing = threading.Timer(0.2, kill, [own_redis])
    killing.start()
    keeper.wait(60)
    killing.join()
    keeper.wait(60)  # nor does it begin
    damage(folder)
    keeper.look()
    keeper.wait(7)
    assert clock.slept == [7]


def test_a_redis_that_cannot_start_is_told_with_its_reason_until_it_is_back(
    folder: RunFolder, own_redis: RedisServer, clock: Clock
) -> None:
    notes = Notes()
    keeper = RedisKeeper(folder, notes)
    kill(own_redis)
    damage(folder)
    keeper.look()
    assert "Redis ended at once: Bad file format" in notes.texts[-1]
    assert "What needs no conversation is still served" in notes.texts[-1]
    assert "Bad file format" in folder.redis_trouble.read_text()
    mend(folder)
    clock.now += 60
    keeper.look()
    assert notes.texts[-1] == "Redis is back."
    assert not folder.redis_trouble.exists()
    assert own_redis.running() is not None


def test_the_pause_between_tries_grows_and_starts_anew_after_a_success(
    folder: RunFolder, own_redis: RedisServer, clock: Clock
) -> None:
    def tries(seconds: int) -> list[int]:
        """Look once a second, and return at which seconds a start was tried."""
        found = []
        for second in range(seconds):
            before = len(notes.texts)
            keeper.look()
            if len(notes.texts) > before:
                found.append(second)
            clock.now += 1
        return found

    notes = Notes()
    keeper = RedisKeeper(folder, notes)
    kill(own_redis)
    damage(folder)
    assert tries(230) == [0, 3, 9, 21, 45, 93, 153, 213]
    mend(folder)
    clock.now += 60
    keeper.look()
    assert own_redis.stop()
    damage(folder)
    assert tries(5) == [0, 3]


def test_another_address_would_help_nobody_so_a_taken_port_is_waited_for(
    folder: RunFolder, own_redis: RedisServer, clock: Clock
) -> None:
    keeper = RedisKeeper(folder, Quiet())
    before = own_redis.running()
    assert before is not None
    port = int(before.get_secret_value().rsplit(":", 1)[1].split("/")[0])
    kill(own_redis)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        keeper.look()
        assert f"Port {port} is taken" in folder.redis_trouble.read_text()
    clock.now += 60
    keeper.look()
    assert own_redis.running() == before


def test_a_disk_without_room_ends_nothing(
    folder: RunFolder, own_redis: RedisServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    keeper = RedisKeeper(folder, notes)
    kill(own_redis)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("serve_app.state.server._write_private", full)
        disk.setattr(Path, "write_text", full)
        keeper.look()
    assert "No space left on device" in notes.texts[-1]
    clock.now += 60
    keeper.look()
    assert own_redis.running() is not None


class Serve(BaseHTTPRequestHandler):
    """Serve's REST interface; `asked` is set once somebody has looked `enough` times."""

    enough = 3

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = json.dumps({"applications": {}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.looks += 1  # type: ignore[attr-defined]
        if self.server.looks == self.enough:  # type: ignore[attr-defined]
            self.server.asked.set()  # type: ignore[attr-defined]


@pytest.fixture
def serve() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Serve) as server:
        server.looks, server.asked = 0, threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_whoever_follows_a_run_goes_on_without_its_redis(
    folder: RunFolder,
    own_redis: RedisServer,
    serve: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "_FOLLOW_S", 0.01)
    monkeypatch.setattr(launch, "marked_processes", lambda _: [object()])
    address = f"http://127.0.0.1:{serve.server_address[1]}"
    state = RunState(
        run_id="r",
        phase="running",
        pid=os.getpid(),
        pid_started=0.0,
        began=0.0,
        url=address,
        dashboard=address,
        deploy_file="x",
        model="m",
        own_redis=True,
    )
    folder.save(state)
    kill(own_redis)
    damage(folder)
    follower = threading.Thread(target=launch.follow, args=(folder.home, state, Quiet()))
    follower.start()
    try:
        assert serve.asked.wait(30), "it no longer looks after the run"  # type: ignore[attr-defined]
        assert follower.is_alive()
        assert folder.redis_trouble.exists()
    finally:
        folder.forget()
        follower.join(30)
    assert not follower.is_alive()
