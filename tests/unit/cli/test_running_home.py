"""Commands in a home with a run: what it tells of itself, and what must be left to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from serve_app.cluster.processes import MARK
from serve_app.cluster.run_folder import RunFolder, RunState

KEY = "pk-right"
METRICS = "# TYPE parley_slots gauge\nparley_slots 32.0\n"


def deployment(
    name: str, status: str = "HEALTHY", message: str = "", states: tuple[str, ...] = ("RUNNING",)
) -> dict[str, object]:
    """What Serve's REST interface says of a deployment of two replicas."""
    replicas = [{"state": state, "pid": 1} for state in states]
    return {
        "name": name,
        "status": status,
        "message": message,
        "target_num_replicas": 2,
        "replicas": replicas,
    }


class Service(ThreadingHTTPServer):
    """Answers as the ingress and Serve's REST interface do; /metrics wants a key."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.redis = "up"
        self.deployments = [deployment("Ingress"), deployment("Generator")]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Service

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/ready":
            self.answer(200, json.dumps({"status": "ready", "redis": self.server.redis}))
        elif self.path == "/metrics":
            allowed = self.headers["authorization"] == f"Bearer {KEY}"
            self.answer(200 if allowed else 401, METRICS if allowed else "{}")
        else:
            deployments = {one["name"]: one for one in self.server.deployments}
            seen = {
                "applications": {"parley": {"deployments": deployments}},
                "http_options": {"host": "127.0.0.1", "port": 1},
                "proxy_location": "HeadOnly",
            }
            self.answer(200, json.dumps(seen))

    def do_PUT(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if wanted["applications"] == []:
            self.server.deployments.clear()
        self.answer(200, "{}")

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "models" / "some-model"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def run(
    tmp_path: Path, environment: dict[str, str], service: Service, model: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A run of one process."""
    with subprocess.Popen(["sleep", "600"], env=environment | {MARK: tmp_path.name}) as process:
        folder = RunFolder(tmp_path / "home")
        folder.create()
        folder.save(
            RunState(
                run_id=tmp_path.name,
                phase="running",
                pid=process.pid,
                pid_started=0.0,  # the `up --detach` that began it has ended
                began=0.0,
                url=service.url,
                dashboard=service.url,
                deploy_file="deploy.yaml",
                model="m",
                model_folder=str(model),
                own_redis=False,
            )
        )
        yield process
        process.kill()


@pytest.mark.usefixtures("run")
def test_status_without_the_key_says_so_in_a_row_and_all_is_well(parley) -> None:
    told = parley("status")
    assert told.returncode == 0, told.stdout
    (row,) = [line for line in told.stdout.splitlines() if "PARLEY_API_KEY" in line]
    assert "only with an API key" in row
    seen = json.loads(parley("status", "--json").stdout)
    assert (seen["load"], seen["problems"]) == ({}, [])


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (
            {"status": "UNHEALTHY", "message": "Failed twice.\nA replica's health check failed."},
            "Generator is UNHEALTHY: A replica's health check failed.",
        ),
        (
            {"status": "DEPLOY_FAILED", "message": "ValueError: no such model"},
            "Generator is DEPLOY_FAILED: ValueError: no such model",
        ),
        (
            {"status": "UPDATING", "states": ("STARTING",)},
            "Generator is UPDATING, and none of its replicas serves.",
        ),
    ],
)
def test_a_deployment_that_is_not_well_is_named_and_fails_the_command(
    parley, service: Service, seen: dict[str, Any], says: str
) -> None:
    service.deployments[1] = deployment("Generator", **seen)
    told = parley("status")
    assert told.returncode == 1
    assert says in told.stdout.splitlines()
    assert json.loads(parley("status", "--json").stdout)["problems"] == [says]


@pytest.mark.usefixtures("run")
def test_a_replica_that_is_still_to_come_is_no_failure(parley, service: Service) -> None:
    service.deployments[1] = deployment(
        "Generator", status="UPSCALING", states=("RUNNING", "STARTING")
    )
    assert parley("status").returncode == 0


@pytest.mark.usefixtures("run")
def test_status_uses_the_key_of_the_environment(parley) -> None:
    told = parley("status", PARLEY_API_KEY=KEY)
    assert told.returncode == 0, told.stdout
    assert "PARLEY_API_KEY" not in told.stdout
    seen = json.loads(parley("status", "--json", PARLEY_API_KEY=KEY).stdout)
    assert seen["load"] == {"slots": 32.0}


@pytest.mark.usefixtures("run")
def test_status_names_every_model(parley, tmp_path: Path) -> None:
    (row,) = [line for line in parley("status").stdout.splitlines() if line.startswith("model")]
    assert row.split() == ["model", "m"]
    folder = RunFolder(tmp_path / "home")
    state = folder.state()
    assert state is not None
    folder.save(state.model_copy(update={"further_models": ("other",)}))
    (row,) = [line for line in parley("status").stdout.splitlines() if line.startswith("model")]
    assert row.split() == ["models", "m,", "other"]
    seen = json.loads(parley("status", "--json").stdout)
    assert (seen["model"], seen["further_models"]) == ("m", ["other"])


@pytest.mark.usefixtures("run")
def test_status_tells_a_wrong_key_from_none(parley) -> None:
    told = parley("status", PARLEY_API_KEY="pk-wrong")
    assert "PARLEY_API_KEY is not accepted" in told.stdout


@pytest.mark.usefixtures("run")
def test_status_without_redis_names_the_log_that_says_where(
    parley, service: Service, tmp_path: Path
) -> None:
    service.redis = "down"
    told = parley("status")
    assert told.returncode == 1
    log = tmp_path / "home" / "logs" / "serve" / "replica_parley_Dialogue_*.log"
    assert f"{log} says where and why" in told.stdout


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("reason", ["Redis ended at once: it is broken.", None])
def test_status_says_that_the_runs_own_redis_is_away_and_why(
    parley, service: Service, tmp_path: Path, reason: str | None
) -> None:
    service.redis = "down"
    folder = RunFolder(tmp_path / "home")
    state = folder.state()
    assert state is not None
    folder.save(state.model_copy(update={"own_redis": True}))
    if reason is not None:
        folder.redis_trouble.write_text(reason)
    told = parley("status")
    assert told.returncode == 1
    assert "own, down" in told.stdout
    assert f"Redis is away: {reason or tmp_path / 'home' / 'redis' / 'redis.log'}" in told.stdout


# A replica with a request in progress, which ends when a line comes.
_REPLICA = """
from serve_app.telemetry.metrics import REQUESTS_IN_PROGRESS
REQUESTS_IN_PROGRESS.inc()
print("busy", flush=True)
input()
REQUESTS_IN_PROGRESS.dec()
print("idle", flush=True)
input()
"""


@pytest.fixture
def busy(run: subprocess.Popen[bytes], environment: dict[str, str]) -> Iterator[Any]:
    """A replica of the run that is in the middle of a reply."""
    with subprocess.Popen(
        [sys.executable, "-c", _REPLICA],
        env=environment | {"PROMETHEUS_MULTIPROC_DIR": ""},  # the home's own folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as replica:
        assert replica.stdout is not None
        assert replica.stdout.readline() == "busy\n"
        yield replica
        replica.kill()


def allow(tmp_path: Path, drain_timeout_s: float) -> None:
    """Set how long the run lets replies end."""
    folder = RunFolder(tmp_path / "home")
    state = folder.state()
    assert state is not None
    folder.save(state.model_copy(update={"drain_timeout_s": drain_timeout_s}))


def test_down_waits_for_a_reply_to_end_before_it_withdraws_anything(
    busy: subprocess.Popen[str],
    run: subprocess.Popen[bytes],
    service: Service,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    allow(tmp_path, 60)
    with subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli", "down"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as down:
        assert down.stdout is not None
        assert any("1 requests are left" in line for line in down.stdout)
        assert service.deployments
        assert run.poll() is None
        assert busy.stdin is not None
        busy.stdin.write("\n")
        busy.stdin.flush()
        down.stdout.read()
    assert down.returncode == 0
    assert service.deployments == []
    assert RunFolder(tmp_path / "home").state() is None


@pytest.mark.usefixtures("busy")
def test_down_waits_no_longer_than_the_run_allows(parley, tmp_path: Path) -> None:
    allow(tmp_path, 0.1)
    assert parley("down").returncode == 0
    assert RunFolder(tmp_path / "home").state() is None


def test_a_model_that_is_being_served_is_not_removed(
    parley, run: subprocess.Popen[Any], service: Service, model: Path
) -> None:
    refused = parley("model", "remove", "some-model")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"some-model is being served at {service.url}.")
    assert "parley down" in refused.stderr
    assert model.is_dir()
    other = model.with_name("other-model")
    other.mkdir()
    assert parley("model", "remove", "other-model").returncode == 0
    assert not other.exists()
    run.kill()
    run.wait()
    assert parley("model", "remove", "some-model").returncode == 0
    assert not model.exists()


@pytest.mark.usefixtures("run")
def test_force_removes_a_model_that_is_being_served(parley, model: Path) -> None:
    assert parley("model", "remove", "--force", "some-model").returncode == 0
    assert not model.exists()
