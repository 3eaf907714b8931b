"""What a RayService says of itself: KubeRay's status, read once, with names for what it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.operations.kinds import Object

__all__ = ["Application", "Condition", "ServiceState", "ServingCluster"]

_RUNNING, _HEALTHY, _FAILED = "RUNNING", "HEALTHY", "DEPLOY_FAILED"
# KubeRay goes no further from these until the RayService is changed, or made anew.
_FINAL_REASONS = ("ValidationFailed", "InitializingTimeout")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a RayService.

    Attributes:
        holds: whether its status is True.
        reason: KubeRay's word for why.
        message: its sentence.
    """

    holds: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Application:
    """An application as Serve last described it to KubeRay.

    Attributes:
        name: its name.
        status: Serve's word, such as RUNNING or DEPLOYING.
        message: why.
        deployments: status and message of each deployment by its name.
    """

    name: str
    status: str
    message: str
    deployments: dict[str, tuple[str, str]]

    @property
    def healthy(self) -> bool:
        """Whether it runs, and all of its deployments as they should."""
        return self.status == _RUNNING and all(
            status == _HEALTHY for status, _ in self.deployments.values()
        )


@dataclass(frozen=True, slots=True)
class ServingCluster:
    """One of the two RayClusters that a RayService may have at a time.

    Attributes:
        name: the RayCluster.
        traffic_percent: its share of the traffic; None where traffic isn't shared.
        capacity_percent: the part of its replicas that it is made ready for; None for all.
        ready_workers: pods of workers that are ready.
        desired_workers: pods of workers that there should be.
        gpus: GPUs that its pods ask for.
        applications: what Serve runs on it.
    """

    name: str
    traffic_percent: int | None
    capacity_percent: int | None
    ready_workers: int
    desired_workers: int
    gpus: str
    applications: tuple[Application, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything that it is to serve is served."""
        return bool(self.applications) and all(one.healthy for one in self.applications)

    @classmethod
    def of(cls, status: Object) -> ServingCluster | None:
        """Read `activeServiceStatus` or `pendingServiceStatus`; None where there is no such cluster."""
        if not (name := status.get("rayClusterName")):
            return None
        cluster = status.get("rayClusterStatus") or {}
        return cls(
            name=name,
            traffic_percent=status.get("trafficRoutedPercent"),
            capacity_percent=status.get("targetCapacity"),
            ready_workers=cluster.get("readyWorkerReplicas", 0),
            desired_workers=cluster.get("desiredWorkerReplicas", 0),
            gpus=str(cluster.get("desiredGPU", "0")),
            applications=tuple(
                Application(
                    name=application,
                    status=one.get("status", ""),
                    message=one.get("message", ""),
                    deployments={
                        deployment: (each.get("status", ""), each.get("message", ""))
                        for deployment, each in (one.get("serveDeploymentStatuses") or {}).items()
                    },
                )
                for application, one in (status.get("applicationStatuses") or {}).items()
            ),
        )


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A RayService at one moment.

    Attributes:
        name: its name.
        version: its resourceVersion.
        generation: counts the changes of its spec.
        observed_generation: the latest of them that KubeRay has acted on.
        conditions: by type: Ready, UpgradeInProgress, RollbackInProgress.
        active: the cluster that serves.
        pending: the one that is brought up to follow it.
    """

    name: str
    version: str
    generation: int
    observed_generation: int
    conditions: dict[str, Condition]
    active: ServingCluster | None
    pending: ServingCluster | None

    @classmethod
    def of(cls, service: Object) -> ServiceState:
        """Read a RayService."""
        metadata, status = service["metadata"], service.get("status") or {}
        return cls(
            name=metadata["name"],
            version=metadata["resourceVersion"],
            generation=metadata.get("generation", 0),
            observed_generation=status.get("observedGeneration", 0),
            conditions={
                one["type"]: Condition(
                    one["status"] == "True", one.get("reason", ""), one.get("message", "")
                )
                for one in status.get("conditions") or []
            },
            active=ServingCluster.of(status.get("activeServiceStatus") or {}),
            pending=ServingCluster.of(status.get("pendingServiceStatus") or {}),
        )

    def holds(self, condition: str) -> bool:
        """Return whether a condition is there and True."""
        found = self.conditions.get(condition)
        return found is not None and found.holds

    @property
    def clusters(self) -> tuple[ServingCluster, ...]:
        """The clusters that there are, the active one first."""
        return tuple(one for one in (self.active, self.pending) if one is not None)

    @property
    def settled(self) -> bool:
        """Whether KubeRay has done all that the latest spec asks for."""
        return (
            self.observed_generation >= self.generation
            and self.holds("Ready")
            and not self.holds("UpgradeInProgress")
            and not self.holds("RollbackInProgress")
            and self.pending is None
            and self.active is not None
            and self.active.healthy
        )

    def failures(self) -> Iterator[str]:
        """Yield what doesn't mend itself."""
        ready = self.conditions.get("Ready")
        if ready is not None and not ready.holds and ready.reason in _FINAL_REASONS:
            yield f"KubeRay says {ready.reason}: {_sentence(ready.message)}"
        if self.observed_generation < self.generation:
            return  # what Serve says is of the spec before
        target = self.pending or self.active
        for application in target.applications if target else ():
            if application.status == _FAILED:
                yield f"Serve says {_FAILED} of {application.name}: {_sentence(application.message)}"

    def describe(self) -> str:
        """Say in a few words what is going on."""
        if self.observed_generation < self.generation:
            return "waiting for KubeRay to see the change"
        words = []
        if self.holds("RollbackInProgress"):
            words.append("going back to the cluster that still runs")
        target = self.pending or self.active
        if target is None:
            return ", ".join([*words, "no cluster yet"])
        words.append(f"{target.name} {target.ready_workers}/{target.desired_workers} workers ready")
        words += [f"{one.name} {one.status}" for one in target.applications]
        for application in target.applications:
            late = [
                name for name, (status, _) in application.deployments.items() if status != _HEALTHY
            ]
            if late:
                words.append(f"{', '.join(late)} not yet healthy")
        if self.pending is not None and self.pending.traffic_percent is not None:
            words.append(f"{self.pending.traffic_percent} % of the traffic")
        return ", ".join(words)


def _sentence(text: str) -> str:
    """Return the last line of what may be a traceback."""
    lines = text.strip().splitlines() or ["no reason given"]
    return lines[-1] if lines[-1].endswith(".") else f"{lines[-1]}."
