"""Kubernetes' events of the namespace, in the order in which they happened."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.kinds import EVENTS, Object

__all__ = ["Event", "latest_events"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an object.

    Attributes:
        time: when it happened last, RFC 3339.
        kind: "Normal" or "Warning".
        object: to what, as KIND/NAME.
        reason: one word.
        message: a sentence.
        count: how often.
    """

    time: str
    kind: str
    object: str
    reason: str
    message: str
    count: int


def latest_events(api: ClusterApi, most: int) -> list[Event]:
    """Return the latest events of the namespace, the newest last.

    Args:
        api: the cluster.
        most: how many.
    """
    found = sorted((_read(one) for one in api.find(EVENTS)), key=lambda event: event.time)
    return found[-most:] if most else []


def _read(one: Object) -> Event:
    about, series = one.get("involvedObject") or {}, one.get("series") or {}
    # Old and new API of events write their times into different fields.
    time = (
        series.get("lastObservedTime")
        or one.get("lastTimestamp")
        or one.get("eventTime")
        or one["metadata"].get("creationTimestamp")
        or ""
    )
    return Event(
        time=time,
        kind=one.get("type") or "Normal",
        object=f"{about.get('kind', '?')}/{about.get('name', '?')}",
        reason=one.get("reason") or "",
        message=(one.get("message") or "").strip(),
        count=series.get("count") or one.get("count") or 1,
    )
