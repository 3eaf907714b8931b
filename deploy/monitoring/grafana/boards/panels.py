"""Panels and the queries that they are made of."""

from __future__ import annotations

from dataclasses import dataclass

Rows = dict[str, tuple["Panel", ...]]
"""A dashboard: rows of panels by their titles."""

SERVED = 'route!~"/health|/ready|/metrics|/version"'
MODEL = 'model_name=~"$model_name"'


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and what its curve is called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph over time.

    Attributes:
        title: what it shows.
        unit: Grafana's name of the unit.
        queries: its curves.
        about: what to conclude from it.
        threshold: where it turns red.
        stacked: whether curves add up.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    about: str
    threshold: float | None = None
    stacked: bool = False


def chosen(*labels: str) -> str:
    """Return a selector of the dashboard's jobs, and of what else it chooses."""
    return "{" + ", ".join(filter(None, ('job=~"$job"', *labels))) + "}"


def quantiles(metric: str, labels: str = "") -> tuple[Query, ...]:
    """Return the median, p95 and p99 of a histogram."""
    return tuple(
        quantile(metric, share, name, labels=labels)
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def quantile(metric: str, share: float, legend: str, by: str = "", labels: str = "") -> Query:
    """Return a quantile of a histogram, in all or by a label."""
    grouped = ", ".join(filter(None, ("le", by)))
    return Query(
        f"histogram_quantile({share}, sum by ({grouped}) "
        f"(rate({metric}_bucket{chosen(labels)}[$__rate_interval])))",
        legend,
    )


def rate(metric: str, legend: str, by: str = "", labels: str = "") -> Query:
    """Return a counter's increase per second, in all or by a label."""
    return Query(f"sum{_by(by)} (rate({metric}{chosen(labels)}[$__rate_interval]))", legend)


def gauge(metric: str, legend: str, by: str = "", labels: str = "", most: bool = False) -> Query:
    """Return a gauge's sum over all nodes, or the greatest, in all or by a label."""
    return Query(f"{'max' if most else 'sum'}{_by(by)} ({metric}{chosen(labels)})", legend)


def share(part: str, whole: str, legend: str, labels: str = "") -> Query:
    """Return what share of a counter another one is."""
    of = [f"sum(rate({one}{chosen(labels)}[$__rate_interval]))" for one in (part, whole)]
    return Query(f"{of[0]} / {of[1]}", legend)


def burned(ratio: str) -> tuple[Query, ...]:
    """Return a recorded ratio over several windows."""
    return tuple(
        Query(f"parley:{ratio}:ratio_rate{window}", f"over {window}")
        for window in ("5m", "1h", "6h")
    )


def _by(label: str) -> str:
    return f" by ({label})" if label else ""
