"""What compose starts, and asks for its health, does so outside of containers too."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.cluster.ports import free_ports
from serve_app.state.server import find_redis_server

DEPLOY = Path(__file__).parents[3] / "deploy"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())[
    "services"
]
PASSWORD = "0123456789abcdef"
WITHIN_S = 30.0


def words(service: str, part: str) -> list[str]:
    """Return a command as compose hands it over, whose own sign for $ is $$."""
    found = SERVICES[service][part]
    return [word.replace("$$", "$") for word in (found["test"] if part == "healthcheck" else found)]


@contextmanager
def running(command: list[str], log: Path, **given: Any) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said, **given) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def test_redis_starts_with_a_password_and_its_health_check_finds_it(tmp_path: Path) -> None:
    redis = find_redis_server().parent
    if not (redis / "redis-cli").exists():
        pytest.skip(f"there is no redis-cli beside {redis}/redis-server")
    (port,) = free_ports(1)
    clients = {"PATH": f"{redis}:/usr/bin:/bin", "REDISCLI_AUTH": PASSWORD}
    command = words("redis", "command")
    command[-1] += f" --port {port}"
    kind, check = words("redis", "healthcheck")
    assert kind == "CMD-SHELL"
    check = check.replace("redis-cli", f"redis-cli -p {port}")

    def healthy(environment: dict[str, str]) -> bool:
        return subprocess.run(["sh", "-c", check], env=environment, check=False).returncode == 0

    assert not healthy(clients)
    with running(command, tmp_path / "log", env=clients, cwd=tmp_path) as process:
        deadline = time.monotonic() + WITHIN_S
        while not healthy(clients):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not healthy(clients | {"REDISCLI_AUTH": "another"})
        assert list(tmp_path.rglob("*.aof"))  # what it keeps


def test_prometheus_starts_with_its_options_and_is_ready_where_it_is_asked(
    prometheus: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    inside = {
        "/etc/prometheus": str(DEPLOY / "monitoring" / "prometheus"),
        "--storage.tsdb.path=/prometheus": f"--storage.tsdb.path={tmp_path / 'data'}",
    }
    command = [
        prometheus,
        *words("prometheus", "command"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    for here, there in inside.items():
        command = [word.replace(here, there) for word in command]
    url = words("prometheus", "healthcheck")[-1].replace(":9090", f":{port}")
    with running(command, tmp_path / "log") as process, httpx.Client(trust_env=False) as http:
        deadline = time.monotonic() + WITHIN_S
        status = 0
        while status != httpx.codes.OK:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            try:
                status = http.get(url).status_code
            except httpx.TransportError:
                time.sleep(0.05)
        rules = http.get(f"http://127.0.0.1:{port}/api/v1/rules").json()["data"]["groups"]
    assert len(rules) >= 4
