"""Writes the Grafana dashboards: `python deploy/monitoring/grafana/generate.py`.

A dashboard is rows of panels, a panel a title, a unit and queries; all else is the same for every one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from boards.cluster import CLUSTER
from boards.dialogue import DIALOGUE
from boards.engine import ENGINE
from boards.panels import Panel, Rows
from boards.service import SERVICE

FOLDER = Path(__file__).parent / "dashboards"
WIDTH = 24
HEIGHT = 8
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
            "legend": {
                "calcs": [],
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
            },
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


def _variable(label: str) -> dict[str, Any]:
    """Return a choice among the values of a label."""
    return {
        "name": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values(parley_slots, {label})", "refId": label},
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard(uid: str, title: str, rows: Rows) -> dict[str, Any]:
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
                *(_variable(label) for label in ("job", "model_name")),
            ]
        },
        "panels": panels,
    }


def dashboards() -> dict[str, dict[str, Any]]:
    """Return every dashboard by the name of its file."""
    return {
        "service.json": dashboard("parley-service", "Parley: service", SERVICE),
        "engine.json": dashboard("parley-engine", "Parley: engine", ENGINE),
        "dialogue.json": dashboard("parley-dialogue", "Parley: dialogue", DIALOGUE),
        "cluster.json": dashboard("parley-cluster", "Parley: cluster", CLUSTER),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, model in dashboards().items():
        written = json.dumps(model, indent=2, ensure_ascii=False) + "\n"
        (FOLDER / file).write_text(written, encoding="utf-8")
