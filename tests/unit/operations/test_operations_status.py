"""`parley ops status`: one look at everything, and a sentence for all that is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
from fake_api_server import TOKEN, ApiServer
from fake_kuberay import PODS, SERVICE, serving, status_of
from typer.testing import Result

from serve_app.errors import ConfigError, OperationError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.status import look

Ops = Callable[..., Result]

SERVE_STATUS = """\
proxies:
  abc: HEALTHY
applications:
  parley:
    status: RUNNING
    message: ''
    deployments:
      Generator:
        status: HEALTHY
        replica_states:
          RUNNING: 2
          STARTING: 1
        message: ''
"""


@pytest.fixture
def serve_program(server: ApiServer) -> None:
    """What `serve status` prints on the head."""
    program = server.disks["parley-x1-head"] / "bin" / "serve"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{SERVE_STATUS}END\n")
    program.chmod(0o700)


def event(name: str, time: str, reason: str, kind: str = "Warning") -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name},
        "involvedObject": {"kind": "RayService", "name": "parley"},
        "lastTimestamp": time,
        "reason": reason,
        "message": f"{reason} happened",
        "type": kind,
        "count": 3,
    }


@pytest.mark.usefixtures("serve_program")
def test_status_shows_service_pods_gpus_replicas_and_events_in_one_table(
    ops: Ops, server: ApiServer
) -> None:
    server.store.add(event("late", "2026-11-26T12:02:00Z", "UpdatedGateway", "Normal"))
    server.store.add(event("early", "2026-11-26T12:01:00Z", "FailedToCreateGateway"))
    shown = ops("status")
    assert shown.exit_code == 0, shown.output
    rows = [[cell.strip() for cell in line.split("│")] for line in shown.stdout.splitlines()]
    named = {(row[1], row[2]): row for row in rows if len(row) > 5}
    assert named["service", "parley/parley"][3:6] == ["ready", "", "2"]
    assert "unrecorded revision" in named["service", "parley/parley"][6]
    assert named["pods", "parley-x1 gpu"][3:6] == ["ready", "2/2", "2"]
    assert "2 to 16" in named["pods", "parley-x1 gpu"][6]
    assert named["deployment", "parley-x1 Generator"][3:5] == ["HEALTHY", "2/3"]
    events = [row for row in rows if len(row) > 5 and row[1] == "event"]
    assert [row[3] for row in events] == ["FailedToCreateGateway", "UpdatedGateway"]


@pytest.mark.usefixtures("serve_program")
def test_status_as_json_says_the_same(ops: Ops) -> None:
    seen = json.loads(ops("status", "--json").stdout)
    assert seen["ready"] is True
    assert {one["name"]: one["gpus"] for one in seen["groups"]} == {
        "cpu": 0,
        "gpu": 2,
        "headgroup": 0,
    }
    replicas = {one["name"]: one["replicas"] for one in seen["deployments"]}
    assert replicas["Generator"] == {"RUNNING": 2, "STARTING": 1}
    assert seen["problems"] == []


def test_what_may_not_be_read_is_named_and_the_rest_is_shown(
    api: ClusterApi, server: ApiServer
) -> None:
    for rule in server.users[TOKEN]:
        rule_resources = [one for one in rule["resources"] if one not in ("events", "pods/exec")]
        server.users[TOKEN] = [
            other if other is not rule else {**rule, "resources": rule_resources}
            for other in server.users[TOKEN]
        ]
    seen = look(api, "parley")
    assert seen.ready
    assert seen.events == []
    assert {one.running for one in seen.deployments} == {"?"}
    assert any("lacks the verb `list` on `events`" in problem for problem in seen.problems)
    assert any("lacks the verb `create` on `pods/exec`" in problem for problem in seen.problems)
    assert all("k8s/operator" in problem for problem in seen.problems)


def test_a_head_that_serve_cannot_be_asked_on_is_a_problem(api: ClusterApi) -> None:
    seen = look(api, "parley")
    assert {one.running for one in seen.deployments} == {"?"}
    assert seen.problems == [
        "A command in the pod parley-x1-head failed: "
        'exec: "serve": executable file not found in $PATH.'
    ]


def test_a_pod_that_cannot_start_is_a_problem_with_its_reason(ops: Ops, server: ApiServer) -> None:
    pod = server.store.get(PODS, "parley", "parley-x1-gpu-b")
    waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    status = {
        "phase": "Pending",
        "containerStatuses": [
            {
                "name": "ray-worker",
                "image": "x",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": {"waiting": waiting},
            }
        ],
    }
    server.store.replace(PODS, "parley-x1-gpu-b", {**pod, "status": status})
    shown = ops("status")
    assert shown.exit_code == 1
    assert "parley-x1-gpu-b doesn't start, ImagePullBackOff: manifest unknown" in shown.stdout


def test_a_service_that_is_not_ready_says_why(api: ClusterApi, server: ApiServer) -> None:
    server.store.set_status(
        SERVICE,
        "parley",
        status_of(
            1,
            serving("parley-x1", 0, traffic=100),
            ready=("False", "ZeroServeEndpoints", "Number of serve endpoints dropped to 0"),
        ),
    )
    seen = look(api, "parley")
    assert not seen.ready
    assert "parley takes no requests: Number of serve endpoints dropped to 0." in seen.problems


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "said"),
    [
        (("--context", "gone"), OperationError, "cluster_unreachable", "kubectl cluster-info"),
        (("--context", "stranger"), OperationError, "cluster_unauthorized", "Log in again"),
        (("--context", "nowhere"), ConfigError, "config_error", "here, stranger, gone"),
        (
            ("--service", "other"),
            OperationError,
            "cluster_object_not_found",
            "kubectl get rayservices.ray.io -n parley",
        ),
    ],
)
def test_what_cannot_be_reached_says_what_to_do(
    arguments: tuple[str, ...], kind: type[Exception], code: str, said: str, ops: Ops
) -> None:
    failed = ops("status", *arguments)
    assert isinstance(failed.exception, kind)
    assert failed.exception.code == code
    assert said in failed.exception.message


def test_without_the_client_its_extra_is_named(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    failed = ops("status")
    assert isinstance(failed.exception, ConfigError)
    assert "pip install 'parley[ops]'" in failed.exception.message


def test_without_a_kubeconfig_there_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")
    with pytest.raises(ConfigError, match="--context"):
        ClusterApi()


def test_long_lists_come_page_by_page(api: ClusterApi, server: ApiServer) -> None:
    server.page = 2
    assert len(look(api, "parley").groups) == 3
    assert server.requests.count(("list", "pods", "")) == 3
