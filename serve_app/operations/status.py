"""What there is of the service in the cluster, gathered at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from serve_app.errors import ParleyError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.events import Event, latest_events
from serve_app.operations.kinds import RAY_CLUSTER_LABEL, RAY_SERVICES, Object
from serve_app.operations.pods import HEAD_GROUP, gpus_of, group_of, is_ready, ray_pods, troubles
from serve_app.operations.ray_service import ServiceState, ServingCluster
from serve_app.operations.revisions import Revisions

__all__ = ["ClusterRow", "DeploymentRow", "GroupRow", "ServiceStatus", "look"]

# The head has the token in its environment: no Secret has to be read for this.
_SERVE_STATUS = ["serve", "status"]
_SERVE_STATUS_S = 30.0
_RUNNING = "RUNNING"


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """A RayCluster of the service.

    Attributes:
        name: its name.
        role: "active" or "pending".
        workers: pods of workers that are ready.
        wanted: pods of workers that there should be.
        gpus: GPUs that its pods ask for, as KubeRay counts them.
        traffic_percent: its share of the traffic; None where traffic isn't shared.
    """

    name: str
    role: str
    workers: int
    wanted: int
    gpus: str
    traffic_percent: int | None


@dataclass(frozen=True, slots=True)
class GroupRow:
    """The pods of one worker group, or the head.

    Attributes:
        name: the group; `headgroup` is the head.
        cluster: its RayCluster.
        ready: pods that get requests.
        pods: pods that there are.
        least: `minReplicas`.
        most: `maxReplicas`.
        gpus: GPUs that these pods ask for.
        images: what they run.
    """

    name: str
    cluster: str
    ready: int
    pods: int
    least: int
    most: int
    gpus: int
    images: list[str]


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """A Serve deployment.

    Attributes:
        name: its name.
        application: of which application.
        cluster: on which RayCluster.
        status: Serve's word.
        message: why.
        replicas: replicas by state, such as RUNNING; None where Serve could not be asked.
    """

    name: str
    application: str
    cluster: str
    status: str
    message: str
    replicas: dict[str, int] | None

    @property
    def running(self) -> str:
        """How many replicas run of how many there are."""
        if self.replicas is None:
            return "?"
        return f"{self.replicas.get(_RUNNING, 0)}/{sum(self.replicas.values())}"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The service, in rows.

    Attributes:
        service: the RayService.
        namespace: where it is.
        ready: whether it takes requests.
        doing: what KubeRay is doing, in a few words.
        upgrading: whether a second cluster is being brought up.
        revision: number of the revision that runs; None if it was changed by other means.
        cause: what made that revision.
        clusters: its RayClusters.
        groups: head and workers.
        deployments: Serve's deployments.
        events: the latest ones, the newest last.
        problems: what is wrong, or could not be learnt.
    """

    service: str
    namespace: str
    ready: bool
    doing: str
    upgrading: bool
    revision: int | None
    cause: str
    clusters: list[ClusterRow]
    groups: list[GroupRow]
    deployments: list[DeploymentRow]
    events: list[Event]
    problems: list[str]


def look(api: ClusterApi, service: str, *, events: int = 10) -> ServiceStatus:
    """Gather the status of a RayService.

    What may not be read, or doesn't answer, is a problem in the result; only the RayService itself has
    to be there.

    Args:
        api: the cluster.
        service: the RayService.
        events: how many of the latest events to take.

    Raises:
        OperationError: there is no such RayService, or no cluster.
    """
    found = api.get(RAY_SERVICES, service)
    state = ServiceState.of(found)
    problems = [*state.failures()]
    pods: list[Object] = []
    with _Noted(problems):
        pods = ray_pods(api, [one.name for one in state.clusters])
        problems += troubles(pods)
    number, cause = None, ""
    with _Noted(problems):
        if revision := Revisions(api, service).current(found["spec"]):
            number, cause = revision.number, revision.cause
    happened: list[Event] = []
    with _Noted(problems):
        happened = latest_events(api, events)
    if not state.holds("Ready"):
        condition = state.conditions.get("Ready")
        reason = condition.message if condition else "KubeRay has not said anything of it"
        problems.append(f"{service} takes no requests: {reason}.")
    return ServiceStatus(
        service=service,
        namespace=api.namespace,
        ready=state.holds("Ready"),
        doing="settled" if state.settled else state.describe(),
        upgrading=state.holds("UpgradeInProgress"),
        revision=number,
        cause=cause,
        clusters=[_cluster_row(state, one) for one in state.clusters],
        groups=_group_rows(found["spec"], pods),
        deployments=[
            row for one in state.clusters for row in _deployment_rows(api, one, pods, problems)
        ],
        events=happened,
        problems=problems,
    )


class _Noted:
    """Lets the look go on without what could not be learnt, and notes why."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, ParleyError):
            return False
        self._problems.append(error.message)
        return True


def _cluster_row(state: ServiceState, cluster: ServingCluster) -> ClusterRow:
    return ClusterRow(
        name=cluster.name,
        role="active" if cluster is state.active else "pending",
        workers=cluster.ready_workers,
        wanted=cluster.desired_workers,
        gpus=cluster.gpus,
        traffic_percent=cluster.traffic_percent,
    )


def _group_rows(spec: Object, pods: Iterable[Object]) -> list[GroupRow]:
    bounds = {HEAD_GROUP: (1, 1)} | {
        group["groupName"]: (group["minReplicas"], group["maxReplicas"])
        for group in spec["rayClusterConfig"].get("workerGroupSpecs") or []
    }
    places: dict[tuple[str, str], list[Object]] = {}
    for pod in pods:
        place = (pod["metadata"]["labels"][RAY_CLUSTER_LABEL], group_of(pod))
        places.setdefault(place, []).append(pod)
    rows = []
    for (cluster, group), members in sorted(places.items()):
        least, most = bounds.get(group, (0, 0))
        rows.append(
            GroupRow(
                name=group,
                cluster=cluster,
                ready=sum(map(is_ready, members)),
                pods=len(members),
                least=least,
                most=most,
                gpus=sum(map(gpus_of, members)),
                images=sorted({pod["spec"]["containers"][0]["image"] for pod in members}),
            )
        )
    return rows


def _deployment_rows(
    api: ClusterApi, cluster: ServingCluster, pods: Iterable[Object], problems: list[str]
) -> list[DeploymentRow]:
    counted: dict[tuple[str, str], dict[str, int]] = {}
    with _Noted(problems):
        counted = _replicas(api, cluster.name, pods)
    return [
        DeploymentRow(
            name=name,
            application=application.name,
            cluster=cluster.name,
            status=status,
            message=message,
            replicas=counted.get((application.name, name)),
        )
        for application in cluster.applications
        for name, (status, message) in application.deployments.items()
    ]


def _replicas(
    api: ClusterApi, cluster: str, pods: Iterable[Object]
) -> dict[tuple[str, str], dict[str, int]]:
    """Ask Serve, on the head, for the replicas of each (application, deployment)."""
    heads = [
        pod
        for pod in pods
        if group_of(pod) == HEAD_GROUP
        and pod["metadata"]["labels"][RAY_CLUSTER_LABEL] == cluster
        and is_ready(pod)
    ]
    if not heads:
        return {}
    name = heads[0]["metadata"]["name"]
    container = heads[0]["spec"]["containers"][0]["name"]
    lines = api.run_in_pod(name, container, _SERVE_STATUS, seconds=_SERVE_STATUS_S)
    said = yaml.safe_load("\n".join(lines))
    applications = said.get("applications", {}) if isinstance(said, dict) else {}
    return {
        (application, deployment): each.get("replica_states") or {}
        for application, one in applications.items()
        for deployment, each in (one.get("deployments") or {}).items()
    }
