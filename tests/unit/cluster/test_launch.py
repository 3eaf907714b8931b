"""Ray is started again with other ports where something took one of those that were free."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from serve_app.cluster import launch
from serve_app.cluster.launch import _bring_up, _head
from serve_app.cluster.ray_head import PortTaken
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.cluster.steps import Quiet
from serve_app.errors import ConfigError
from serve_app.settings import Settings

TAKEN = "Check failed: server_ Failed to start the grpc server. The specified port is 24963.\n"


class Starter:
    """Ray's command line as it would answer, one line after the other."""

    answers: list[tuple[int, str]]
    given: list[list[str]]

    def __init__(self, run_id: str) -> None:
        assert run_id == "run"

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def start(
        self, arguments: list[str], environment: dict[str, str], log: Path, *, timeout_s: float
    ) -> int:
        code, said = self.answers.pop(0)
        self.given.append(arguments)
        log.write_text(said)
        return code


class Api:
    def __init__(self, dashboard: str, token: str) -> None:
        self.dashboard = dashboard

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def deploy(self, config: dict[str, Any]) -> None:
        return


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    made = RunFolder(tmp_path / "home")
    made.create()
    Starter.given = []
    monkeypatch.setattr(launch, "RayStarter", Starter)
    monkeypatch.setattr(launch, "ServeApi", Api)
    monkeypatch.setattr(launch, "await_ready", lambda *_: None)
    monkeypatch.setattr(launch, "named_url", lambda _: SecretStr("redis://127.0.0.1:1/0"))
    return made


def brought_up(folder: RunFolder, *answers: tuple[int, str]) -> RunState:
    Starter.answers = list(answers)
    deployment: Any = SimpleNamespace(settings=Settings.load(), cpus=2, config={"applications": []})
    head = _head(folder, folder.work_folder(), deployment)
    state = RunState(
        run_id="run",
        phase="starting",
        pid=1,
        pid_started=0.0,
        began=0.0,
        url="http://127.0.0.1:1",
        dashboard=head.dashboard,
        deploy_file="file",
        model="model",
        own_redis=False,
        drain_timeout_s=1.0,
    )
    starter: Any = Starter("run")
    return _bring_up(folder, deployment, head, starter, state, Quiet())


def port(arguments: list[str], name: str) -> int:
    return int(arguments[arguments.index(name) + 1])


def test_a_port_that_was_taken_in_between_costs_a_second_start(folder: RunFolder) -> None:
    state = brought_up(folder, (1, TAKEN), (0, ""))
    first, second = Starter.given
    for name in ("--port", "--dashboard-port"):
        assert port(first, name) != port(second, name)
    dashboard = f"http://127.0.0.1:{port(second, '--dashboard-port')}"
    saved = folder.state()
    assert saved is not None
    assert state.dashboard == saved.dashboard == dashboard


def test_whoever_takes_the_ports_each_time_is_told_of(folder: RunFolder) -> None:
    with pytest.raises(PortTaken, match="24963"):
        brought_up(folder, (1, TAKEN), (1, TAKEN))


def test_another_failure_is_not_tried_again(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match="no such option") as caught:
        brought_up(folder, (2, "no such option"))
    assert not isinstance(caught.value, PortTaken)
