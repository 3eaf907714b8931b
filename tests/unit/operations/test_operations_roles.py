"""`k8s/operator` grants what `parley ops` asks for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_api_server import ApiServer
from kustomize import build
from schemas import schema_faults
from typer.testing import Result

Ops = Callable[..., Result]

# Before Kubernetes 1.35 a WebSocket asks for another verb.
_OLDER_SERVERS = {("get", "pods/exec")}


def test_the_roles_are_well_formed() -> None:
    assert [fault for one in build("operator") for fault in schema_faults(one)] == []


@pytest.mark.usefixtures("kuberay")
def test_every_verb_of_the_roles_is_asked_for_and_suffices(
    ops: Ops,
    server: ApiServer,
    rules: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.operations.revisions.HISTORY", 2)  # so that some are deleted
    commands = [
        ("status",),
        ("revisions",),
        ("logs", "resp_1"),
        ("bundle", "--output", str(tmp_path / "support.tar.gz")),
        ("rollout", "--image", "registry.example.com/parley/parley:0.2.0"),
        ("rollback",),
        ("scale", "--workers", "gpu=2:9", "--no-wait"),
        ("scale", "--workers", "gpu=2:10", "--no-wait"),
        ("drain", "node-2"),
    ]
    for command in commands:
        done = ops(*command)
        # The made-up head has no `serve` to ask for replicas, which is a problem of the status.
        assert done.exit_code == (1 if command == ("status",) else 0), (command, done.output)
    granted = {
        (verb, resource)
        for granting in rules.values()
        for rule in granting
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    asked = {(verb, plural) for verb, plural, _ in server.requests}
    assert asked - granted == {("list", "secrets")}
    assert granted - asked == _OLDER_SERVERS
