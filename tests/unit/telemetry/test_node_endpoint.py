"""A node has one address for metrics, as long as any of its replicas lives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

import serve_app
from serve_app.cluster.ports import free_ports
from serve_app.routing.reporting import may_see_metrics
from serve_app.settings import AuthSettings
from serve_app.state.keys import KeyRing

REPOSITORY = Path(serve_app.__file__).parents[1]
_REPLICA = """
import sys
from pathlib import Path
from serve_app.telemetry import metrics
from serve_app.telemetry.node_endpoint import NodeEndpoint
metrics.SLOTS.labels("m").set(8)
NodeEndpoint(
    "127.0.0.1", int(sys.argv[1]), allowed=lambda sent: sent != "no", folder=Path(sys.argv[2])
).start()
print("started", flush=True)
sys.stdin.read()
"""
PATIENCE_S = 30.0


class Node:
    """Replicas that would all answer on one port."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/metrics"
        self._folder = folder
        self._stack = stack

    def replica(self) -> subprocess.Popen[str]:
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", _REPLICA, str(self.port), str(self._folder)],
                env=os.environ
                | {"PYTHONPATH": str(REPOSITORY), "PROMETHEUS_MULTIPROC_DIR": str(self._folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        self._stack.callback(process.kill)
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        return process

    def slots(self) -> float:
        """Return the slots of all replicas, once somebody answers."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                text = httpx.get(self.url, trust_env=False).text
            except httpx.TransportError:
                assert time.monotonic() < deadline, "nobody answers"
                time.sleep(0.05)
            else:
                (line,) = [line for line in text.splitlines() if line.startswith("parley_slots{")]
                return float(line.rsplit(" ", 1)[1])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(tmp_path, stack)


def test_one_address_answers_for_all_replicas_and_survives_each_of_them(node: Node) -> None:
    replicas = [node.replica() for _ in range(3)]
    assert node.slots() == 24
    for left in (16, 8):
        gone = replicas.pop(0)  # the first is the one that answers
        gone.send_signal(signal.SIGKILL)
        gone.wait()
        assert node.slots() == left


def test_only_metrics_are_shown_and_only_to_whom_they_are_for(node: Node) -> None:
    node.replica()
    node.slots()
    with httpx.Client(trust_env=False) as http:
        assert http.get(node.url, headers={"authorization": "no"}).status_code == 401
        assert http.get(node.url.replace("/metrics", "/")).status_code == 404
        assert http.post(node.url).status_code == 501
        assert http.get(node.url).headers["content-type"].startswith("text/plain")


def test_a_client_that_says_nothing_keeps_nobody_else_from_the_metrics(node: Node) -> None:
    node.replica()
    node.slots()
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
        assert node.slots() == 8


def test_a_port_that_something_else_has_is_named_in_the_log(node: Node) -> None:
    with socket.create_server(("127.0.0.1", node.port)):
        replica = node.replica()
        assert replica.stderr
        said = replica.stderr.readline()
    assert str(node.port) in said
    assert "metrics.port" in said


def test_metrics_take_a_key_as_soon_as_there_is_one(tmp_path: Path) -> None:
    keys = KeyRing.open(AuthSettings(), tmp_path)
    assert may_see_metrics(keys, "")
    key = keys.create("prometheus", "acme")
    assert may_see_metrics(keys, f"Bearer {key}")
    for wrong in ("", f"Bearer {key}x", f"Basic {key}", key):
        assert not may_see_metrics(keys, wrong)
