"""How many generator replicas: by what they have to do, not by the calls that are open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingContext

from serve_app.errors import ConfigError

__all__ = ["GeneratorLoad", "ScaleByWork"]


@dataclass(frozen=True, slots=True)
class GeneratorLoad:
    """What all replicas of a generator have to do, as they record it.

    Attributes:
        reporting: replicas that have recorded anything.
        streams: sequences that run or wait.
        slots: slots of those that report.
        work: what they do, in what one replica can do: a day's load is the same for few and for many.
        queued_tokens: prompt tokens that have yet to be computed.
        ttft_s: sum over the replicas of the seconds until a new request would have its first token.
    """

    reporting: int
    streams: float
    slots: float
    work: float
    queued_tokens: float
    ttft_s: float

    @classmethod
    def of(cls, recorded: Mapping[str, Mapping[Any, float]] | None) -> GeneratorLoad:
        """Add up what Serve has aggregated, by name and replica."""
        metrics = recorded or {}

        def total(name: str) -> float:
            return float(sum(metrics.get(name, {}).values()))

        return cls(
            reporting=len(metrics.get("slots", {})),
            streams=total("streams"),
            slots=total("slots"),
            work=total("work"),
            queued_tokens=total("queued_tokens"),
            ttft_s=total("predicted_ttft_s"),
        )


class ScaleByWork:
    """Serve's autoscaling policy for the Generator: `policy_function` in the deploy file.

    A generator has one open call per ingress replica whatever its load, so Serve's own count of
    requests says nothing. Four things that replicas record do, and the one that asks for most
    replicas decides:

    - slots: no more than `utilisation` of them taken, by those who run and those who wait;
    - work: no more than `utilisation` of what the replicas could do with every slot taken. Streams
      that many replicas share are soon answered, so there are few of them, and slots alone would
      take replicas away until the rest can't keep up;
    - predicted TTFT: where a new request would have its first token later than `target_ttft_s`, what
      is before it is worked off within `recovery_s`, besides the work that keeps arriving;
    - queued prompt tokens: no more than `queued_tokens` of them per replica, which also holds while
      a new engine has not yet measured how fast it is.

    Serve puts its own around this: bounds, delays, factors, the averaging over
    `look_back_period_s`, and with `min_replicas: 0` the first replica as soon as a request waits for
    one. A replica that takes requests is warm, see `generator.warm_up_tokens`.

    Args:
        target_ttft_s: seconds to a new request's first token that are aimed at.
        utilisation: share of the slots, and of what replicas can do, that may be taken, in (0, 1].
        recovery_s: seconds within which a backlog is worked off.
        queued_tokens: prompt tokens that may wait per replica.

    Raises:
        ConfigError: one of them makes no sense.
    """

    def __init__(
        self,
        *,
        target_ttft_s: float = 2.0,
        utilisation: float = 0.8,
        recovery_s: float = 30.0,
        queued_tokens: float = 8192.0,
    ) -> None:
        if not 0 < utilisation <= 1:
            msg = f"policy_kwargs.utilisation is {utilisation}; set it above 0, and to 1 at most."
            raise ConfigError(msg, param="utilisation")
        positive = {
            "target_ttft_s": target_ttft_s,
            "recovery_s": recovery_s,
            "queued_tokens": queued_tokens,
        }
        for name, value in positive.items():
            if not 0 < value < math.inf:
                msg = f"policy_kwargs.{name} is {value}; set it to a number above 0."
                raise ConfigError(msg, param=name)
        self._target_ttft_s = target_ttft_s
        self._utilisation = utilisation
        self._recovery_s = recovery_s
        self._queued_tokens = queued_tokens

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the replicas that there should be, and what Serve keeps until the next decision."""
        load = GeneratorLoad.of(context.aggregated_metrics)
        if not load.reporting:  # replicas that start have recorded nothing: no reason to change
            return context.target_num_replicas, {}
        lowest, highest = (
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
        )
        return min(highest, max(lowest, self.wanted(load))), {}

    def wanted(self, load: GeneratorLoad) -> int:
        """Return the replicas that the load asks for, without bounds."""
        slots = load.slots / load.reporting
        late = load.ttft_s / load.reporting > self._target_ttft_s
        asked = (
            load.streams / (slots * self._utilisation),
            load.work / self._utilisation,
            load.work + load.ttft_s / self._recovery_s if late else 0.0,
            load.queued_tokens / self._queued_tokens,
        )
        return math.ceil(max(asked))
