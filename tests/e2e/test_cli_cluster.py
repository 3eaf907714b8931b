"""`parley up` and `parley down` with real Ray, real Redis and the real model: nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.cluster.deploy_file import default_deploy_file
from serve_app.cluster.ports import free_ports
from serve_app.cluster.processes import marked_processes
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.models.store import PreparedModel
from serve_app.state.server import RedisServer

REPOSITORY = Path(__file__).parents[2]
START_S = 180.0
REQUEST_S = 30.0


class Home:
    """One PARLEY_HOME and the commands that are run in it."""

    def __init__(self, path: Path, models: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "models").symlink_to(models)
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = RunFolder(path)
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")
        }
        self.environment = {
            **clean,
            "PARLEY_HOME": str(path),
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "200",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "serve_app.cli", *arguments]

    def run(self, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            input=said,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )

    def launch(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def state(self) -> RunState:
        state = self.folder.state()
        assert state is not None
        return state

    def remove(self) -> None:
        self.run("down", "--now")
        shutil.rmtree(self.folder.work_folder())

    def assert_nothing_runs(self, run_id: str) -> None:
        assert marked_processes(run_id) == []
        assert RedisServer(self.path).running() is None
        assert self.folder.state() is None


def wait_for(condition: Callable[[], bool], seconds: float = START_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def models(bundled_int8: PreparedModel) -> Path:
    return bundled_int8.path.parent


@pytest.fixture
def home(tmp_path: Path, models: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home", models)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("running") / "home", models)
    try:
        started = made.run("up", "--detach", "--port", str(made.port))
        assert started.returncode == 0, started.stdout + started.stderr
        yield made
    finally:
        made.remove()


def test_what_up_started_answers_and_status_shows_it(running: Home) -> None:
    assert httpx.get(f"{running.url}/ready", timeout=REQUEST_S).status_code == 200
    shown = running.run("status", "--json")
    assert shown.returncode == 0, shown.stdout
    status = json.loads(shown.stdout)
    assert status["phase"] == "running"
    assert status["ready"] is True
    assert status["redis"] == "own, up"
    assert {
        one["name"]: (one["running"], one["target"]) for one in status["deployments"]
    } == dict.fromkeys(("Ingress", "Dialogue", "Tokenizer", "Generator"), (1, 1))
    assert "Generator" in running.run("status").stdout


def test_a_second_up_is_refused_and_harms_nothing(running: Home) -> None:
    refused = running.run("up", "--detach", "--port", str(running.port + 1))
    assert refused.returncode == 1
    assert f"Parley runs already, at {running.url}; `parley down` ends it." in refused.stderr
    assert httpx.get(f"{running.url}/ready", timeout=REQUEST_S).status_code == 200


def test_up_on_a_busy_port_names_who_has_it_and_starts_nothing(home: Home) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", home.port))
        busy.listen()
        refused = home.run("up", "--detach", "--port", str(home.port))
    assert refused.returncode == 1
    assert re.search(rf"Port {home.port} is busy: .*process {os.getpid()}", refused.stderr)
    assert home.folder.state() is None


def test_everything_listens_on_loopback_and_ray_wants_its_token(running: Home) -> None:
    pids = {process.pid for process in marked_processes(running.state().run_id)}
    listening = [
        (connection.laddr[0], psutil.Process(connection.pid).name())
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    ]
    assert listening
    open_doors = [
        one for one in listening if one[0] not in {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    ]
    assert open_doors == []
    dashboard = running.state().dashboard
    for path in ("/api/serve/applications/", "/api/jobs/"):
        assert httpx.get(f"{dashboard}{path}", timeout=REQUEST_S).status_code == 401


def test_no_password_is_in_any_command_line(running: Home) -> None:
    password = (running.path / "redis" / "password").read_text()
    secrets = (password, running.folder.token())
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        assert not any(secret in line for secret in secrets)


def test_chat_through_a_pipe_remembers_and_can_be_resumed(running: Home) -> None:
    talked = running.run(
        "chat", said="/params max_output_tokens=8 seed=1\nHello.\nAnd again.\n/history\n"
    )
    assert talked.returncode == 0, talked.stderr
    assert "user: Hello." in talked.stdout
    assert "user: And again." in talked.stdout
    assert talked.stdout.count("assistant: ") == 2


def test_conversations_survive_ctrl_c_and_down_and_neither_leaves_anything(home: Home) -> None:
    foreground = home.launch("up", "--port", str(home.port))
    wait_for(lambda: (state := home.folder.state()) is not None and state.phase == "running")
    with httpx.Client(base_url=home.url, timeout=60) as client:
        conversation = client.post("/v1/conversations", json={}).json()["id"]
        model = client.get("/v1/models").json()["data"][0]["id"]
        turn = {"model": model, "conversation": conversation, "input": "Hi", "max_output_tokens": 4}
        assert client.post("/v1/responses", json=turn).status_code == 200
        before = client.get(f"/v1/conversations/{conversation}/items").json()
    run_id = home.state().run_id
    foreground.send_signal(signal.SIGINT)
    assert foreground.wait(60) == 0
    home.assert_nothing_runs(run_id)

    again = home.run("up", "--detach", "--port", str(home.port))
    assert again.returncode == 0, again.stderr
    items = f"{home.url}/v1/conversations/{conversation}/items"
    assert httpx.get(items, timeout=REQUEST_S).json() == before
    run_id = home.state().run_id
    down = home.run("down")
    assert down.returncode == 0, down.stderr
    home.assert_nothing_runs(run_id)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_up_that_is_ended_while_it_starts_leaves_nothing(
    home: Home, ending: signal.Signals
) -> None:
    up = home.launch("up", "--port", str(home.port))
    wait_for(lambda: home.folder.state() is not None)
    run_id = home.state().run_id
    wait_for(lambda: len(marked_processes(run_id)) >= 3)  # Ray is coming up
    up.send_signal(ending)
    code = up.wait(60)
    assert code == (-9 if ending is signal.SIGKILL else 128 + ending)
    # After kill -9 it is the guard that cleans up, a moment later.
    wait_for(lambda: home.folder.state() is None, 60)
    home.assert_nothing_runs(run_id)


def test_an_application_that_fails_is_told_with_its_error_and_leaves_nothing(
    home: Home, tmp_path: Path
) -> None:
    file = tmp_path / "broken.yaml"
    text = default_deploy_file().read_text()
    file.write_text(text.replace("serve_app.app:build", "nowhere.app:build"))
    failed = home.run("up", "--detach", "--port", str(home.port), "--config", str(file))
    assert failed.returncode == 1
    assert "ModuleNotFoundError: No module named 'nowhere'" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert home.folder.state() is None
    assert RedisServer(home.path).running() is None
