"""What is on disk of a run: private, whole, and for one command at a time."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from serve_app.cluster import ports
from serve_app.cluster.ports import free_ports, require_free
from serve_app.cluster.ray_head import RayHead, RayPorts
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.errors import ConfigError
from serve_app.settings import Settings


def state(**changes: object) -> RunState:
    values = {
        "run_id": "r",
        "phase": "starting",
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
        "began": 0.0,
        "url": "http://127.0.0.1:8000",
        "dashboard": "http://127.0.0.1:9",
        "deploy_file": "x",
        "model": "m",
        "own_redis": True,
    }
    return RunState.model_validate(values | changes)


def empty_work_folder(home: Path) -> Path:
    """Return a home's work folder without what a test run that was killed has left there."""
    shutil.rmtree(RunFolder(home).work_folder())
    return RunFolder(home).work_folder()


def test_state_and_token_are_the_owners_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    folder.save(state())
    assert folder.state() == state()
    for file in ("ray-token", "state.json"):
        assert (tmp_path / "run" / file).stat().st_mode & 0o777 == 0o600
    token = folder.token()
    folder.create()
    assert folder.token() == token
    folder.forget()
    assert folder.state() is None


def test_a_strange_state_file_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    (tmp_path / "run" / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="not what Parley wrote"):
        folder.state()


def test_a_second_up_is_told_who_is_starting(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    with subprocess.Popen(["sleep", "600"]) as starter:
        started = psutil.Process(starter.pid).create_time()
        with folder.locked():
            folder.save(state(pid=starter.pid, pid_started=started))
            with pytest.raises(ConfigError, match=f"process {starter.pid}"), folder.locked():
                pass
        starter.kill()


def test_the_work_folder_is_short_private_and_its_own_for_each_home(tmp_path: Path) -> None:
    one, other = (empty_work_folder(tmp_path / name) for name in ("a" * 90, "b" * 90))
    try:
        assert one != other
        assert RunFolder(tmp_path / ("a" * 90)).work_folder() == one
        assert one.stat().st_mode & 0o777 == 0o700
        assert len(str(one)) <= 24
    finally:
        one.rmdir()
        other.rmdir()


def test_a_link_planted_in_the_temporary_folder_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "victim")
    work = empty_work_folder(folder.home)
    work.rmdir()
    work.symlink_to(tempfile.gettempdir())
    try:
        with pytest.raises((ConfigError, FileExistsError)):
            folder.work_folder()
    finally:
        work.unlink()


def test_a_busy_port_names_who_has_it() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} is busy: .*process {os.getpid()}"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)


@pytest.mark.parametrize("port", [0, -1, 70_000])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="not a port"):
        require_free("127.0.0.1", port)


def test_free_ports_differ_and_no_outgoing_connection_is_given_one() -> None:
    found = free_ports(5)
    assert len(set(found)) == 5
    assert all(1024 <= port < 32_768 for port in found)


def test_a_busy_port_is_not_among_the_free_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        (free,) = free_ports(1)
        monkeypatch.setattr(ports, "_FREE_PORTS", range(port, port + 1))
        with pytest.raises(ConfigError, match="end something that listens there"):
            free_ports(1)
        monkeypatch.setattr(ports, "_FREE_PORTS", (port, free))
        assert free_ports(1) == [free]


@pytest.fixture
def head(tmp_path: Path) -> RayHead:
    folder = RunFolder(tmp_path / "home")
    folder.create()
    (tmp_path / "w").mkdir()
    return RayHead(folder, tmp_path / "w", RayPorts(1, 2, 3, 4101, 4404, 6), cpus=2)


def test_rays_environment_holds_the_mark_and_one_secret(
    head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("PARLEY_GENERATOR_SLOTS", "5")
    monkeypatch.setenv("PARLEY_REDIS_TIMEOUT_S", "9")
    environment = head.environment("run", Settings.load(), "redis://:pw@127.0.0.1:1/0")
    assert environment["PARLEY_RUN_ID"] == "run"
    assert environment["PARLEY_REDIS_URL"] == "redis://:pw@127.0.0.1:1/0"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_ADDRESS" not in environment  # it would join another cluster
    # They are in the deployed args; here they would win over a later deployment of other args.
    assert "PARLEY_GENERATOR_SLOTS" not in environment
    assert "PARLEY_REDIS_TIMEOUT_S" not in environment


def test_a_head_that_comes_too_slowly_is_refused_by_haproxy_and_its_connection_closed(
    head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    assert "\ndefaults\n" in HAPROXY_CONFIG_TEMPLATE  # else the script has nothing to amend
    monkeypatch.setenv("PARLEY_INGRESS_READ_TIMEOUT_S", "0.2")
    environment = head.environment("run", Settings.load(), "redis://")
    (port,) = free_ports(1)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout client 3600s\n"
        f"frontend web\n    bind 127.0.0.1:{port}\n    http-request return status 200\n"
    )
    haproxy = subprocess.Popen([environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", config])
    try:
        with connected(port, haproxy) as slow:
            slow.sendall(b"POST /v1/chat/compl")
            answer = b"".join(iter(lambda: slow.recv(4096), b""))
        with connected(port, haproxy) as quick:
            quick.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert quick.recv(4096).startswith(b"HTTP/1.1 200 ")
    finally:
        haproxy.kill()
        haproxy.wait()
    assert answer.startswith(b"HTTP/1.1 408 ")


def connected(port: int, server: subprocess.Popen[bytes]) -> socket.socket:
    """Connect to a server that is starting; its answer must come within half a minute."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            assert server.poll() is None, "it has ended"


def test_the_names_by_which_serve_is_told_are_those_that_it_reads(head: RayHead) -> None:
    environment = head.environment("run", Settings.load(), "redis://")
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ray.serve._private import constants as c\n"
            "print(c.RAY_SERVE_ENABLE_HA_PROXY, c.RAY_SERVE_THROUGHPUT_OPTIMIZED)\n"
            "print(c.RAY_SERVE_HAPROXY_BINARY_PATH, c.RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S)\n"
            "print(c.PROXY_READY_CHECK_TIMEOUT_S, c.PROXY_HEALTH_CHECK_PERIOD_S)",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    script = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert told.stdout == f"True True\n{script} 630\n30.0 1.0\n"


def test_without_an_haproxy_serve_is_not_told_to_use_one(
    head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.cluster.ray_head.haproxy_binary", lambda: None)
    environment = head.environment("run", Settings.load(), "redis://")
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in environment


def test_importing_the_commands_imports_no_heavy_package() -> None:
    heavy = "{'ray', 'numpy', 'onnx', 'transformers', 'redis', 'torch'}"
    code = f"import serve_app.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "[]\n"
