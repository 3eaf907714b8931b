"""Replicas that a policy of Ray Serve's adds and takes away, in simulated time.

The policies are called as Serve's controller calls them: through Serve's own wrapper, which applies
delays, factors and the start from zero, with a context of Serve's own class.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from load.simulated_replica import Request, SimulatedReplica

__all__ = ["Fleet", "Policy", "Replay"]

Policy = Callable[[AutoscalingContext], tuple[float, dict[str, Any]]]

_GENERATOR = DeploymentID("Generator", "parley")
_TICK_S = 1.0
# How often a replica records what it has to do: Serve's push interval times its recording factor.
_RECORD_S = 2.0


@dataclass(slots=True)
class Replay:
    """What became of a load under one policy.

    Attributes:
        requests: all of them, with the seconds of their first tokens.
        at: seconds at which the following was noted.
        replicas: replicas that were paid for: starting, taking requests or ending.
        ready: replicas that took requests.
        replica_s: seconds of replicas that were paid for, added up.
        changes: decisions that changed the target.
    """

    requests: list[Request]
    at: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    replica_s: float = 0.0
    changes: int = 0


@dataclass(slots=True)
class _Member:
    """A replica with its record."""

    replica: SimulatedReplica
    name: ReplicaID
    ready_at: float
    ending: bool = False
    record: deque[tuple[float, dict[str, float]]] = field(default_factory=deque)


class Fleet:
    """Replays requests against replicas that a policy scales.

    Args:
        policy: Serve's policy, as the deploy file would name it.
        config: Serve's autoscaling configuration: bounds, delays, averaging.
        make: makes a replica.
        start_s: seconds from the decision for a replica until it takes requests.
    """

    def __init__(
        self,
        policy: Policy,
        config: AutoscalingConfig,
        make: Callable[[], SimulatedReplica],
        *,
        start_s: float,
    ) -> None:
        self._policy = _apply_autoscaling_config(policy)
        self._config = config
        self._make = make
        self._start_s = start_s
        self._members: list[_Member] = []
        self._number = 0
        self._pending: deque[Request] = deque()  # those that no replica is there for
        self._totals: deque[tuple[float, float]] = deque()
        self._state: dict[str, Any] = {}
        self._target = config.min_replicas
        for _ in range(self._target):
            self._add(ready_at=0.0)

    def replay(self, requests: Sequence[Request], seconds: float) -> Replay:
        """Let requests arrive in their order, for so many seconds and until all have ended.

        Args:
            requests: sorted by when they arrive; they are changed.
            seconds: for how long at least.
        """
        replay = Replay(list(requests))
        arriving = deque(requests)
        now = 0.0
        with _simulated_clock() as clock:
            while now < seconds or arriving or self._open_streams():
                clock.now = now
                self._step(now, arriving)
                before = self._target
                self._decide(now)
                replay.changes += self._target != before
                replay.replica_s += len(self._members) * _TICK_S
                if now % 60.0 == 0.0:
                    replay.at.append(now)
                    replay.replicas.append(len(self._members))
                    replay.ready.append(len(self._taking(now)))
                now += _TICK_S
        return replay

    def _step(self, now: float, arriving: deque[Request]) -> None:
        """Hand out what arrives in this tick, and let it pass."""
        while arriving and arriving[0].due_at < now + _TICK_S:
            self._pending.append(arriving.popleft())
        taking = self._taking(now)
        while taking and self._pending:
            least = min(taking, key=lambda member: member.replica.streams)
            least.replica.submit(self._pending.popleft())
        for member in self._members:
            member.replica.advance(now, _TICK_S)
        self._members = [
            member for member in self._members if not member.ending or member.replica.streams
        ]
        if now % _RECORD_S == 0.0:
            self._record(now)

    def _record(self, now: float) -> None:
        since = now - self._config.look_back_period_s
        for member in self._taking(now):
            member.record.append((now, member.replica.recorded()))
            while member.record[0][0] < since:
                member.record.popleft()
        self._totals.append((now, float(self._open_streams())))
        while self._totals[0][0] < since:
            self._totals.popleft()

    def _decide(self, now: float) -> None:
        taking = self._taking(now)
        bounds = self._config.min_replicas, self._config.max_replicas
        context = AutoscalingContext(
            deployment_id=_GENERATOR,
            deployment_name=_GENERATOR.name,
            app_name=_GENERATOR.app_name,
            current_num_replicas=len(taking),
            target_num_replicas=self._target,
            running_replicas=[member.name for member in taking],
            # What Serve would count if each stream were a call of its own.
            total_num_requests=self._mean_total,
            total_queued_requests=float(len(self._pending)),
            aggregated_metrics=lambda: self._aggregated(taking),
            raw_metrics=None,
            capacity_adjusted_min_replicas=bounds[0],
            capacity_adjusted_max_replicas=bounds[1],
            policy_state=dict(self._state),
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=self._config,
        )
        wanted, self._state = self._policy(context)
        self._target = max(bounds[0], min(bounds[1], math.ceil(wanted)))
        staying = [member for member in self._members if not member.ending]
        for _ in range(self._target - len(staying)):
            self._add(ready_at=now + self._start_s)
        # Serve ends those first that don't take requests yet, then those with the fewest.
        staying.sort(key=lambda member: (member.ready_at <= now, member.replica.streams))
        for member in staying[: max(len(staying) - self._target, 0)]:
            member.ending = True

    def _mean_total(self) -> float:
        totals = [total for _, total in self._totals]
        return sum(totals) / len(totals) if totals else float(self._open_streams())

    def _aggregated(self, members: Sequence[_Member]) -> dict[str, dict[ReplicaID, float]]:
        """Return means over the look-back period by name and replica, as Serve aggregates them."""
        means: dict[str, dict[ReplicaID, float]] = {}
        for member in members:
            for name in member.record[-1][1] if member.record else ():
                values = [recorded[name] for _, recorded in member.record]
                means.setdefault(name, {})[member.name] = sum(values) / len(values)
        return means

    def _taking(self, now: float) -> list[_Member]:
        return [one for one in self._members if one.ready_at <= now and not one.ending]

    def _open_streams(self) -> int:
        return len(self._pending) + sum(member.replica.streams for member in self._members)

    def _add(self, *, ready_at: float) -> None:
        self._number += 1
        name = ReplicaID(str(self._number), _GENERATOR)
        self._members.append(_Member(self._make(), name, ready_at))


@contextmanager
def _simulated_clock() -> Iterator[SimpleNamespace]:
    """Have Serve's delays read a clock that the simulation sets; there is no parameter for it."""
    clock = SimpleNamespace(now=0.0)
    real = autoscaling_policy.time
    autoscaling_policy.time = SimpleNamespace(time=lambda: clock.now)
    try:
        yield clock
    finally:
        autoscaling_policy.time = real
