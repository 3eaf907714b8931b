"""A PARLEY_HOME of its own for a test, and the commands that are run in it."""

from __future__ import annotations

import math
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import psutil

from serve_app.cluster.ports import free_ports
from serve_app.cluster.processes import alive, marked_processes
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.state.server import RedisServer

REPOSITORY = Path(__file__).parents[2]
START_S = 180.0
REQUEST_S = 30.0
# Reading the authorities of TLS, which nothing here speaks, would take a quarter of a processor while
# something is waited for.
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class ClusterHome:
    """One PARLEY_HOME with models that are prepared already.

    Args:
        path: the home, which must not exist yet.
        models: folder of prepared models.
    """

    def __init__(self, path: Path, models: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "models").symlink_to(models)
        # Those that ship, in a folder where a test may add others.
        self.personas = path / "personas-of-the-test"
        shutil.copytree(REPOSITORY / "deploy" / "personas", self.personas)
        self.port, self.metrics_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = RunFolder(path)
        self.redis = RedisServer(path)
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")
        }
        self.environment = {
            **clean,
            "PARLEY_HOME": str(path),
            "PARLEY_METRICS_PORT": str(self.metrics_port),
            "PARLEY_DIALOGUE_PERSONAS": str(self.personas),
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "200",
        }

    def run(self, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(*arguments),
            env=self.environment,
            input=said,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and return at once."""
        return subprocess.Popen(
            self._command(*arguments),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def up(self, *arguments: str) -> None:
        """Start the cluster in the background."""
        started = self.run("up", "--detach", "--port", str(self.port), *arguments)
        assert started.returncode == 0, started.stdout + started.stderr

    @contextmanager
    def attended(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run `parley up` in the foreground, as it is used to watch over the cluster."""
        # Into a file: nobody would read a pipe, and a full one would stop it.
        with (self.path / "up.log").open("w") as log:
            up = subprocess.Popen(
                self._command("up", "--port", str(self.port), *arguments),
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_for(lambda: up.poll() is not None or self.phase() == "running")
            assert up.poll() is None, (self.path / "up.log").read_text()
            yield up
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(START_S)

    def phase(self) -> str | None:
        """Return how far the run is, None if there is none."""
        state = self.folder.state()
        return None if state is None else state.phase

    def state(self) -> RunState:
        """Return the state of the run."""
        state = self.folder.state()
        assert state is not None
        return state

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Return the run's processes whose title, or executable's name, begins with `title`.

        Redis is among them.
        """
        found = processes_of(self.state().run_id, title)
        if (pid := self.redis.pid) is not None and pid not in {one.pid for one in found}:
            redis = psutil.Process(pid)
            found += [redis] if _title(redis).startswith(title) else []
        return found

    def ready(self) -> dict[str, object]:
        """Return what GET /ready says, {} while nothing answers."""
        try:
            answer: dict[str, object] = httpx.get(
                f"{self.url}/ready", timeout=REQUEST_S, verify=_NO_AUTHORITIES
            ).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    def generator(self, name: str) -> float:
        """Return one of the generator's numbers, nan while nothing answers."""
        match self.ready():
            case {"generator": {**numbers}}:
                return float(numbers[name])
        return math.nan

    def client(self, api_key: str = "none") -> openai.OpenAI:
        """Return the official client, which tries nothing twice."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=START_S
        )

    def model(self) -> str:
        """Return the name of the served model."""
        return self.client().models.list().data[0].id

    def remove(self) -> None:
        """End what runs and remove what lies outside of the home."""
        self.run("down", "--now")
        shutil.rmtree(self.folder.work_folder())

    def assert_nothing_runs(self, run_id: str) -> None:
        """Make sure that a run has left nothing."""
        assert marked_processes(run_id) == []
        assert self.redis.running() is None
        assert self.folder.state() is None

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "serve_app.cli", *arguments]


def processes_of(mark: str, title: str) -> list[psutil.Process]:
    """Return the processes with a mark whose title, or executable's name, begins with `title`."""
    return [process for process in marked_processes(mark) if _title(process).startswith(title)]


def kill(process: psutil.Process) -> None:
    """Kill a process, and wait until it is gone or only its parent still has to notice."""
    started = process.create_time()
    process.kill()
    wait_for(lambda: not alive(process.pid, started))


def wait_for(condition: Callable[[], bool], seconds: float = START_S) -> None:
    """Wait until the condition holds; the test fails if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def _title(process: psutil.Process) -> str:
    try:
        return Path(process.cmdline()[0]).name
    except (psutil.NoSuchProcess, IndexError):
        return ""  # it has ended in between
