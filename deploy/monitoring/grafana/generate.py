"""Writes the Grafana dashboards: `python deploy/monitoring/grafana/generate.py`.

A dashboard is rows of panels, a panel a title, a unit and queries; all else is the same for every one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
WIDTH = 24
HEIGHT = 8
SERVED = 'route!~"/health|/ready|/metrics|/version"'


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


def quantiles(metric: str) -> tuple[Query, ...]:
    """Return the median, p95 and p99 of a histogram."""
    return tuple(
        Query(
            f"histogram_quantile({share}, sum by (le) "
            f'(rate({metric}_bucket{{job=~"$job"}}[$__rate_interval])))',
            name,
        )
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def rate(metric: str, legend: str, by: str = "", labels: str = "") -> Query:
    """Return a counter's increase per second, in all or by a label."""
    grouped = f" by ({by})" if by else ""
    chosen = ", ".join(filter(None, ('job=~"$job"', labels)))
    return Query(f"sum{grouped} (rate({metric}{{{chosen}}}[$__rate_interval]))", legend)


def gauge(metric: str, legend: str) -> Query:
    """Return a gauge's sum over all nodes."""
    return Query(f'sum({metric}{{job=~"$job"}})', legend)


def burned(ratio: str) -> tuple[Query, ...]:
    """Return a recorded ratio over several windows."""
    return tuple(
        Query(f"parley:{ratio}:ratio_rate{window}", f"over {window}")
        for window in ("5m", "1h", "6h")
    )


SERVICE: dict[str, tuple[Panel, ...]] = {
    "Objectives": (
        Panel(
            "Requests that fail",
            "percentunit",
            burned("request_errors"),
            "Failures that are ours, broken streams included. The objective is 0.5 % in 30 days.",
            threshold=0.005,
        ),
        Panel(
            "Replies that begin late",
            "percentunit",
            burned("slow_first_tokens"),
            "First tokens after more than 2.5 s. The objective is 5 % in 30 days.",
            threshold=0.05,
        ),
    ),
    "Traffic": (
        Panel(
            "Requests by status",
            "reqps",
            (rate("parley_requests_total", "{{status}}", "status", SERVED),),
            "499 is a client that left.",
            stacked=True,
        ),
        Panel(
            "Requests by route",
            "reqps",
            (rate("parley_requests_total", "{{route}}", "route", SERVED),),
            "What is asked for.",
            stacked=True,
        ),
        Panel(
            "Errors by code",
            "reqps",
            (rate("parley_errors_total", "{{code}}", "code"),),
            "docs/api.md says what each code means.",
            stacked=True,
        ),
    ),
    "Latency": (
        Panel(
            "Time to first token",
            "s",
            quantiles("parley_time_to_first_token_seconds"),
            "From a request's arrival. Compare with the queue time on the engine's dashboard.",
            threshold=2.5,
        ),
        Panel(
            "Time between tokens",
            "s",
            quantiles("parley_inter_token_latency_seconds"),
            "The mean of each finished reply.",
        ),
        Panel(
            "Time to the end of the reply",
            "s",
            quantiles("parley_e2e_request_latency_seconds"),
            "Grows with the length of replies.",
        ),
    ),
    "Where the time goes": (
        Panel(
            "Requests computed, by stage",
            "short",
            (rate("parley_stage_seconds_sum", "{{stage}}", "stage", 'part="compute"'),),
            "Seconds spent per second: so many requests are in the stage at once. docs/latency.md "
            "says what each stage is.",
            stacked=True,
        ),
        Panel(
            "Requests on their way, by stage",
            "short",
            (rate("parley_stage_seconds_sum", "{{stage}}", "stage", 'part="transfer"'),),
            "Grows where the network, Redis, a busy event loop or clients are slow.",
            stacked=True,
        ),
    ),
    "Load": (
        Panel(
            "Requests in progress",
            "short",
            (gauge("parley_requests_in_progress", "in progress"),),
            "Streams that are being sent count.",
        ),
        Panel(
            "Tokens of replies",
            "short",
            (rate("parley_generation_tokens_total", "tokens/s"),),
            "Of finished replies, so it follows the load by their length.",
        ),
    ),
}

ENGINE: dict[str, tuple[Panel, ...]] = {
    "Slots": (
        Panel(
            "Streams",
            "short",
            (
                gauge("parley_num_requests_running", "running"),
                gauge("parley_num_requests_waiting", "waiting"),
                gauge("parley_slots", "slots"),
            ),
            "Running at the slots' line, and waiting above 0: more is asked for than there is.",
        ),
        Panel(
            "Slots in use",
            "percentunit",
            (Query("parley:slots:used_ratio", "in use"),),
            "For hours above 0.95: add replicas.",
            threshold=0.95,
        ),
        Panel(
            "Queue time",
            "s",
            quantiles("parley_request_queue_time_seconds"),
            "From submission to a slot: the part of the time to first token that more slots end.",
        ),
        Panel(
            "Prefill time",
            "s",
            quantiles("parley_request_prefill_time_seconds"),
            "From a slot to the first token. Grows with prompts that are in no cache.",
        ),
        Panel(
            "Decode time",
            "s",
            quantiles("parley_request_decode_time_seconds"),
            "From the first token to the last one. Grows with the length of replies.",
        ),
    ),
    "Tokens": (
        Panel(
            "Tokens a second",
            "short",
            (
                rate("parley_prompt_tokens_total", "prompt"),
                rate("parley_prompt_tokens_cached_total", "of them cached"),
                rate("parley_generation_tokens_total", "reply"),
            ),
            "Cached tokens are not computed.",
        ),
        Panel(
            "Prefix cache hits",
            "percentunit",
            (
                Query(
                    'sum(rate(parley_prompt_tokens_cached_total{job=~"$job"}[$__rate_interval])) '
                    '/ sum(rate(parley_prompt_tokens_total{job=~"$job"}[$__rate_interval]))',
                    "cached share of prompts",
                ),
            ),
            "A fall with no change in traffic: conversations don't find their replica again.",
        ),
        Panel(
            "Tokens held in slots",
            "short",
            (gauge("parley_kv_cache_tokens", "tokens"),),
            "Bounded by generator.max_cached_tokens on each replica.",
        ),
    ),
    "Replicas": (
        Panel(
            "Slots by node",
            "short",
            (Query('sum by (instance) (parley_slots{job=~"$job"})', "{{instance}}"),),
            "A node that falls to 0 and comes back has lost its replica.",
            stacked=True,
        ),
        Panel(
            "Generators lost, engine errors",
            "reqps",
            (
                rate(
                    "parley_errors_total", "{{code}}", "code", 'code=~"generator_lost|engine_error"'
                ),
            ),
            "Should be nothing.",
        ),
        Panel(
            "Replies that moved",
            "reqps",
            (rate("parley_stream_moves_total", "{{cause}}", "cause"),),
            "They went on with another generator: lost, theirs died; handed_back, it was stopped.",
            stacked=True,
        ),
        Panel(
            "Time to move",
            "s",
            quantiles("parley_stream_move_seconds"),
            "Until another generator has taken the reply. Readers wait for its prompt besides.",
        ),
    ),
}

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panel_json(panel: Panel, number: int, column: int, width: int, top: int) -> dict[str, Any]:
    """Return a panel as Grafana's model has it."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.threshold is not None:
        steps.append({"color": "red", "value": panel.threshold})
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": {"h": HEIGHT, "w": width, "x": column, "y": top},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {
                    "fillOpacity": 20 if panel.stacked else 0,
                    "stacking": {"mode": "normal" if panel.stacked else "none"},
                    "thresholdsStyle": {"mode": "off" if panel.threshold is None else "line"},
                },
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for position, query in enumerate(panel.queries)
        ],
    }


def dashboard(uid: str, title: str, rows: dict[str, tuple[Panel, ...]]) -> dict[str, Any]:
    """Return a dashboard as Grafana's model has it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for name, row in rows.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": name,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
                "panels": [],
            }
        )
        width = WIDTH // len(row)
        panels += [
            panel_json(panel, len(panels) + place + 1, place * width, width, top + 1)
            for place, panel in enumerate(row)
        ]
        top += HEIGHT + 1
    return {
        "uid": uid,
        "title": title,
        "tags": ["parley"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {
                    "name": "job",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": {"query": "label_values(parley_slots, job)", "refId": "job"},
                    "includeAll": True,
                    "allValue": ".+",
                    "multi": True,
                    "refresh": 2,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def dashboards() -> dict[str, dict[str, Any]]:
    """Return every dashboard by the name of its file."""
    return {
        "service.json": dashboard("parley-service", "Parley: service", SERVICE),
        "engine.json": dashboard("parley-engine", "Parley: engine", ENGINE),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, model in dashboards().items():
        written = json.dumps(model, indent=2, ensure_ascii=False) + "\n"
        (FOLDER / file).write_text(written, encoding="utf-8")
