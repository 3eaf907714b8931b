"""Draining a node: cordon, evict, wait, and never against a budget."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable

import pytest
from fake_api_server import ApiServer
from fake_kuberay import PODS
from object_store import RESOURCES, Object
from typer.testing import Result

from serve_app.errors import OperationError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.draining import drain

Ops = Callable[..., Result]

NODES = RESOURCES["", "nodes"]
BUDGETS = RESOURCES["policy", "poddisruptionbudgets"]


def keep(server: ApiServer, workers: int) -> None:
    budget = server.store.get(BUDGETS, "parley", "parley-workers")
    budget["spec"]["minAvailable"] = workers
    budget["status"] = {
        "currentHealthy": 4,
        "desiredHealthy": workers,
        "disruptionsAllowed": max(0, 4 - workers),
        "expectedPods": 4,
    }
    server.store.replace(BUDGETS, "parley-workers", budget)


def names_on(server: ApiServer, node: str) -> list[str]:
    pods = server.store.find(PODS, "parley", "", f"spec.nodeName={node}")
    return [pod["metadata"]["name"] for pod in pods]


def test_a_drained_node_is_cordoned_and_has_none_of_parleys_pods(
    ops: Ops, server: ApiServer
) -> None:
    other = copy.deepcopy(server.store.get(PODS, "parley", "parley-x1-cpu-a"))
    other["metadata"] = {"name": "somebody-elses", "labels": {"app": "other"}}
    server.store.add(other)
    done = ops("drain", "node-1", "--json")
    assert done.exit_code == 0, done.output
    drained = json.loads(done.stdout)
    # The head goes last.
    assert drained["evicted"][-1] == "parley-x1-head"
    assert sorted(drained["evicted"]) == ["parley-x1-cpu-a", "parley-x1-gpu-a", "parley-x1-head"]
    assert names_on(server, "node-1") == ["somebody-elses"]
    assert names_on(server, "node-2") == ["parley-x1-cpu-b", "parley-x1-gpu-b"]
    assert server.store.get(NODES, "", "node-1")["spec"]["unschedulable"] is True


def test_a_pod_that_a_budget_keeps_goes_when_another_has_come(
    api: ClusterApi, server: ApiServer
) -> None:
    keep(server, 4)
    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if "has to wait" in stage:
            for name in ("cpu-c", "gpu-c"):
                fresh: Object = copy.deepcopy(server.store.get(PODS, "parley", "parley-x1-gpu-b"))
                fresh["metadata"] = {
                    "name": f"parley-x1-{name}",
                    "labels": fresh["metadata"]["labels"],
                }
                server.store.add(fresh)

    drained = drain(api, "node-1", timeout_s=20, progress=progress, again_s=0.05)
    assert drained.refusals == 2
    assert len(drained.evicted) == 3
    assert any("needs 4 healthy pods and has 4" in stage for stage in stages)


def test_a_budget_that_allows_nothing_ends_the_wait_with_its_name(
    api: ClusterApi, server: ApiServer
) -> None:
    keep(server, 4)
    with pytest.raises(OperationError) as late:
        drain(api, "node-1", timeout_s=0.2, progress=lambda *_: None, again_s=0.05)
    assert late.value.code == "operation_timeout"
    assert "parley-workers keeps 4 of 4 healthy pods" in late.value.message
    assert "kubectl uncordon node-1" in late.value.message
    assert "parley-x1-cpu-a" in names_on(server, "node-1")


def test_a_pod_that_takes_its_time_is_waited_for(api: ClusterApi, server: ApiServer) -> None:
    ending: list[Object] = []
    server.on_eviction = ending.append

    def progress(_stage: str, _done: int, _total: int) -> None:
        while ending:
            threading.Thread(target=server.end_pod, args=(ending.pop(),)).start()

    drained = drain(api, "node-2", timeout_s=20, progress=progress, again_s=0.05)
    assert drained.evicted == ["parley-x1-cpu-b", "parley-x1-gpu-b"]
    evictions = [name for _, part, name in server.requests if part == "pods/eviction"]
    assert len(evictions) == 2


def test_a_node_that_is_not_there_is_named(ops: Ops) -> None:
    failed = ops("drain", "node-9")
    assert isinstance(failed.exception, OperationError)
    assert failed.exception.message.startswith("There is no nodes/node-9.")


def test_who_may_not_cordon_is_told_of_the_cluster_role(ops: Ops, server: ApiServer) -> None:
    for token, rules in server.users.items():
        server.users[token] = [rule for rule in rules if "nodes" not in rule["resources"]]
    failed = ops("drain", "node-1")
    assert isinstance(failed.exception, OperationError)
    assert "lacks the verb `patch` on `nodes`" in failed.exception.message
    assert "ClusterRole in k8s/operator" in failed.exception.message
