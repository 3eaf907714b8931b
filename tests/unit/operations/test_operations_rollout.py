"""Rollout, rollback and scale: nobody's change is lost, and what comes of one's own is followed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fake_api_server import ApiServer
from fake_kuberay import PODS, SERVICE, KubeRay
from kustomize import K8S
from object_store import RESOURCES, Object, merged
from typer.testing import Result

from serve_app.errors import ConfigError, InvalidRequest, OperationError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.kinds import RAY_SERVICES
from serve_app.operations.merge_patch import merge_patch
from serve_app.operations.revisions import HISTORY, Revisions
from serve_app.operations.rollout import Change, apply_spec, change_spec, roll_back
from serve_app.operations.scaling import Bounds, budget_warnings, scale_spec

Ops = Callable[..., Result]

REVISIONS = RESOURCES["apps", "controllerrevisions"]
NEW = "registry.example.com/parley/parley:0.2.0"


def spec_of(server: ApiServer) -> Object:
    spec: Object = server.store.get(SERVICE, "parley", "parley")["spec"]
    return spec


def images(server: ApiServer) -> dict[str, str]:
    cluster = spec_of(server)["rayClusterConfig"]
    named = [("head", cluster["headGroupSpec"])]
    named += [(group["groupName"], group) for group in cluster["workerGroupSpecs"]]
    return {
        name: group["template"]["spec"]["containers"][0]["image"].rsplit("/", 1)[-1]
        for name, group in named
    }


@pytest.fixture
def serve_file(server: ApiServer, tmp_path: Path) -> Path:
    file = tmp_path / "serve.yaml"
    file.write_text(spec_of(server)["serveConfigV2"].replace("slots: 64", "slots: 16"))
    assert "slots: 16" in file.read_text()
    return file


@pytest.mark.usefixtures("kuberay")
def test_an_image_is_rolled_out_and_the_upgrade_followed_to_its_end(
    ops: Ops, server: ApiServer
) -> None:
    done = ops("rollout", "--image", NEW, "--image", f"gpu={NEW}-gpu")
    assert done.exit_code == 0, done.output
    assert "Revision 2 runs on parley-x2." in done.stdout
    assert images(server) == {
        "head": "parley:0.2.0",
        "cpu": "parley:0.2.0",
        "gpu": "parley:0.2.0-gpu",
    }
    assert ("watch", "rayservices", "") in server.requests


@pytest.mark.usefixtures("kuberay")
def test_a_deploy_file_is_checked_rolled_out_and_rolled_back(
    ops: Ops, server: ApiServer, serve_file: Path
) -> None:
    before = spec_of(server)
    rolled = json.loads(ops("rollout", "--serve-config", str(serve_file), "--json").stdout)
    assert rolled["revision"] == 2
    assert spec_of(server)["serveConfigV2"] == serve_file.read_text()
    back = ops("rollback")
    assert back.exit_code == 0, back.output
    assert spec_of(server) == before
    known = json.loads(ops("revisions", "--json").stdout)
    assert [(one["number"], one["current"]) for one in known] == [(3, True), (2, False)]
    assert known[0]["cause"] == "rollback to revision 1"
    forth = ops("rollback", "--to", "2")
    assert forth.exit_code == 0, forth.output
    assert spec_of(server)["serveConfigV2"] == serve_file.read_text()


def test_a_deploy_file_with_a_typo_never_reaches_the_cluster(
    ops: Ops, server: ApiServer, serve_file: Path
) -> None:
    serve_file.write_text(serve_file.read_text().replace("slots: 16", "slotz: 16"))
    failed = ops("rollout", "--serve-config", str(serve_file))
    assert isinstance(failed.exception, ConfigError)
    assert "slotz" in failed.exception.message
    assert server.requests == []


@pytest.mark.usefixtures("kuberay")
def test_what_serve_cannot_deploy_fails_with_its_reason_and_the_way_back(
    ops: Ops, serve_file: Path
) -> None:
    serve_file.write_text(serve_file.read_text().replace("source: bundled", "source: bad_model"))
    failed = ops("rollout", "--serve-config", str(serve_file))
    assert isinstance(failed.exception, OperationError)
    assert failed.exception.code == "rollout_failed"
    assert "ModelError: there is no bad_model." in failed.exception.message
    assert "parley ops rollback" in failed.exception.message


@pytest.mark.usefixtures("kuberay")
def test_what_kuberay_refuses_fails_with_its_reason(ops: Ops) -> None:
    failed = ops("rollout", "--image", "nonsense")
    assert isinstance(failed.exception, OperationError)
    assert "KubeRay says ValidationFailed: the image is nonsense." in failed.exception.message


@pytest.mark.usefixtures("kuberay")
def test_an_upgrade_that_hangs_ends_with_its_time_and_names_the_pod(
    ops: Ops, server: ApiServer
) -> None:
    template = server.store.get(PODS, "parley", "parley-x1-gpu-a")
    pod = copy.deepcopy(template)
    pod["metadata"] = {
        "name": "parley-x2-gpu-a",
        "labels": {**template["metadata"]["labels"], "ray.io/cluster": "parley-x2"},
    }
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/2 nodes have room",
    }
    pod["status"] = {"phase": "Pending", "conditions": [unscheduled]}
    server.store.add(pod)
    failed = ops("rollout", "--image", "missing:1", "--timeout", "0.5")
    assert isinstance(failed.exception, OperationError)
    assert failed.exception.code == "operation_timeout"
    assert "parley-x2-gpu-a finds no node: 0/2 nodes have room" in failed.exception.message
    assert "parley ops status" in failed.exception.message


def test_of_two_operators_the_slower_one_changes_nothing(
    api: ClusterApi, server: ApiServer
) -> None:
    read_by_both = api.get(RAY_SERVICES, "parley")
    first = change_spec(read_by_both["spec"], Change(images={"": "first:1"}))
    second = change_spec(read_by_both["spec"], Change(images={"": "second:1"}))
    assert apply_spec(api, read_by_both, first, "first") is not None
    with pytest.raises(OperationError, match="nothing was done") as refused:
        apply_spec(api, read_by_both, second, "second")
    assert refused.value.code == "cluster_conflict"
    assert set(images(server).values()) <= {"first:1"}
    assert next(one.cause for one in Revisions(api, "parley").history()) == "first"


def test_a_change_to_what_it_is_already_is_none(api: ClusterApi, server: ApiServer) -> None:
    service = api.get(RAY_SERVICES, "parley")
    assert apply_spec(api, service, service["spec"], "nothing") is None
    assert not [verb for verb, _, _ in server.requests if verb not in ("get", "list")]


def test_history_is_bounded_and_goes_with_the_service(api: ClusterApi, server: ApiServer) -> None:
    for number in range(HISTORY + 3):
        service = api.get(RAY_SERVICES, "parley")
        spec = change_spec(service["spec"], Change(images={"": f"parley:{number}"}))
        apply_spec(api, service, spec, f"to {number}")
    kept = Revisions(api, "parley").history()
    assert [one.number for one in kept] == list(range(HISTORY + 4, 4, -1))
    uid = server.store.get(SERVICE, "parley", "parley")["metadata"]["uid"]
    for one in server.store.find(REVISIONS, "parley", "", ""):
        assert [owner["uid"] for owner in one["metadata"]["ownerReferences"]] == [uid]
    with pytest.raises(OperationError, match="no revision 1 of parley; kept are: 14, 13"):
        roll_back(api, "parley", 1)


def test_what_was_changed_by_other_means_is_recorded_before_it_is_changed(
    api: ClusterApi, server: ApiServer
) -> None:
    service = api.get(RAY_SERVICES, "parley")
    apply_spec(api, service, change_spec(service["spec"], Change(images={"": "a:1"})), "a")
    others = change_spec(spec_of(server), Change(images={"": "kubectl:1"}))
    server.store.patch(SERVICE, "parley", "parley", {"spec": others})
    service = api.get(RAY_SERVICES, "parley")
    apply_spec(api, service, change_spec(service["spec"], Change(images={"": "b:1"})), "b")
    roll_back(api, "parley")
    assert set(images(server).values()) == {"kubectl:1"}


def test_without_an_earlier_revision_there_is_nothing_to_go_back_to(api: ClusterApi) -> None:
    with pytest.raises(OperationError, match="earlier commit") as refused:
        roll_back(api, "parley")
    assert refused.value.code == "revision_not_found"


def test_a_group_that_is_not_there_is_refused(server: ApiServer) -> None:
    with pytest.raises(InvalidRequest, match="there are head, cpu, gpu"):
        change_spec(spec_of(server), Change(images={"tpu": "x"}))


def test_a_merge_patch_makes_one_object_of_the_other() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": "gone", "e": {"f": 1}}
    after = {"a": {"b": 2, "c": [1]}, "e": {"f": 1}, "g": {}}
    patch = merge_patch(before, after)
    assert patch == {"a": {"b": 2, "c": [1]}, "d": None, "g": {}}
    assert merged(before, patch) == after
    assert merge_patch(after, after) == {}


@pytest.mark.usefixtures("kuberay")
def test_a_pool_and_its_deployment_are_scaled_together(ops: Ops, server: ApiServer) -> None:
    before = spec_of(server)["serveConfigV2"]
    done = ops("scale", "--workers", "gpu=3:12", "--replicas", "Generator=3:12")
    assert done.exit_code == 0, done.output
    groups = spec_of(server)["rayClusterConfig"]["workerGroupSpecs"]
    bounds = {one["groupName"]: (one["minReplicas"], one["maxReplicas"]) for one in groups}
    assert bounds == {"cpu": (2, 4), "gpu": (3, 12)}
    after = spec_of(server)["serveConfigV2"]
    changed = [
        (old.strip(), new.strip())
        for old, new in zip(before.splitlines(), after.splitlines(), strict=True)
        if old != new
    ]
    assert changed == [
        ("min_replicas: 2", "min_replicas: 3"),
        ("max_replicas: 16", "max_replicas: 12"),
    ]
    scaling = {
        one["name"]: one["autoscaling_config"]["max_replicas"]
        for one in yaml.safe_load(after)["applications"][0]["deployments"]
    }
    assert scaling["Generator"] == 12


def test_fewer_workers_than_a_budget_keeps_are_warned_of() -> None:
    spec = {"rayClusterConfig": {"workerGroupSpecs": [{"minReplicas": 1}]}}
    budget = yaml.safe_load((K8S / "base" / "pod-disruption-budget.yaml").read_text())
    assert "drain could wait for ever" in budget_warnings(spec, [budget])[0]
    spec["rayClusterConfig"]["workerGroupSpecs"][0]["minReplicas"] = 2
    assert budget_warnings(spec, [budget]) == []


@pytest.mark.parametrize(
    ("workers", "replicas", "said"),
    [
        ({"tpu": Bounds(1, 2)}, {}, "there are cpu, gpu"),
        ({}, {"Oracle": Bounds(1, 2)}, "there are Ingress, Dialogue, Tokenizer, Generator"),
    ],
)
def test_what_cannot_be_scaled_is_refused(
    workers: dict[str, Bounds], replicas: dict[str, Bounds], said: str, server: ApiServer
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        scale_spec(spec_of(server), workers, replicas)


@pytest.mark.parametrize("text", ["", "8:2", "a:b", "-1:2", ":2"])
def test_bounds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="2:8"):
        Bounds.parse(text)


def test_who_may_only_look_is_told_which_verb_is_missing(ops: Ops, server: ApiServer) -> None:
    for rules in server.users.values():
        for rule in rules:
            if "rayservices" in rule["resources"]:
                rules[rules.index(rule)] = {**rule, "verbs": ["get", "list", "watch"]}
    failed = ops("rollout", "--image", NEW)
    assert isinstance(failed.exception, OperationError)
    assert failed.exception.code == "cluster_forbidden"
    assert "lacks the verb `patch` on `rayservices`" in failed.exception.message
    assert "k8s/operator" in failed.exception.message


def test_an_outcome_is_followed_through_a_version_too_old_to_watch(
    ops: Ops, server: ApiServer, kuberay: KubeRay
) -> None:
    server.store.oldest_watch = 10**9
    assert ops("rollout", "--image", NEW).exit_code == 0
