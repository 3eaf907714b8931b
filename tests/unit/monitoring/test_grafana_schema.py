"""Dashboards are what Grafana's published schema has, of the version that deploy/compose.yaml runs.

Grafana itself is in no package of PyPI, Debian or npm. What stands for it is its Foundation SDK, whose
types Grafana Labs generates from the schema. They take anything, so this looks at what they were given.
"""

from __future__ import annotations

import copy
import enum
import json
import re
import types
import typing
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import common, dashboard, prometheus, timeseries

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "deploy" / "monitoring" / "grafana" / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))

register_default_plugins()


def faults(model: dict[str, Any]) -> list[str]:
    """Return what the schema doesn't have in a dashboard, and what has the wrong type there."""
    read = dashboard.Dashboard.from_json(copy.deepcopy(model))
    written = json.loads(json.dumps(read, cls=JSONEncoder))
    return [*lost(model, written), *mistyped(read, dashboard.Dashboard)]


def lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    """Find what was given and is not there any more: the types read only what the schema has."""
    match given, kept:
        case dict(), dict():
            for key, value in given.items():
                if key in kept:
                    yield from lost(value, kept[key], f"{where}.{key}")
                elif value is not None:
                    yield f"{where}.{key} is unknown"
        case list(), list() if len(given) == len(kept):
            for number, (value, other) in enumerate(zip(given, kept, strict=True)):
                yield from lost(value, other, f"{where}[{number}]")
        case _:
            if given != kept:
                yield f"{where} became {kept!r}"


def mistyped(value: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Find values that aren't of the types that the classes of the schema are annotated with."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is typing.Any or wanted is object:
        return
    if origin in (typing.Union, types.UnionType):
        tries = [list(mistyped(value, one, where)) for one in arguments]
        if all(tries):
            yield from min(tries, key=len)
    elif origin is typing.Literal:
        if value not in arguments:
            yield f"{where} is {value!r}"
    elif origin in (list, dict):
        if not isinstance(value, origin):
            yield f"{where} is {value!r}"
            return
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in inner:
            yield from mistyped(one, arguments[-1], f"{where}[{key}]")
    elif isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        if value not in {one.value for one in wanted}:
            yield f"{where} is {value!r}"
    elif hasattr(wanted, "from_json") or hasattr(value, "from_json"):
        if not isinstance(value, wanted):
            yield f"{where} is {value!r}"
            return
        for name, kind in typing.get_type_hints(type(value)).items():
            yield from mistyped(getattr(value, name), kind, f"{where}.{name}")
        # What belongs to a kind of panel is read as such, and annotated as anything.
        if isinstance(value, dashboard.FieldConfig):
            yield from mistyped(value.custom, common.GraphFieldConfig, f"{where}.custom")
        if isinstance(value, dashboard.Panel):
            yield from mistyped(value.options, timeseries.Options, f"{where}.options")
    elif not isinstance(value, (int, float) if wanted is float else wanted):
        yield f"{where} is {value!r}"


def test_the_schema_is_that_of_the_grafana_that_is_run() -> None:
    services = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())["services"]
    _, _, run = services["grafana"]["image"].partition(":")
    _, _, known = version("grafana_foundation_sdk").partition("!")
    assert run.split(".")[:2] == known.split(".")[:2]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_grafanas_schema_has_all_of_a_dashboard(file: Path) -> None:
    model = json.loads(file.read_text("utf-8"))
    assert faults(model) == []
    read = dashboard.Dashboard.from_json(model)
    assert read.panels
    assert any(isinstance(panel, dashboard.RowPanel) for panel in read.panels)
    for panel in read.panels:
        if isinstance(panel, dashboard.Panel):
            assert panel.type_val == "timeseries"
            assert panel.targets
            assert all(isinstance(one, prometheus.Dataquery) for one in panel.targets), panel.title


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("uid", 7),
        ("refresh", 30),
        ("shemaVersion", 39),
        ("graphTooltip", 9),
        ("panels/1/gridPos/w", "wide"),
        ("panels/1/gridpos", {}),
        ("panels/1/fieldConfig/defaults/unti", "s"),
        ("panels/1/fieldConfig/defaults/custom/stacking/mode", "high"),
        ("panels/1/fieldConfig/defaults/custom/fillOpacity", "20"),
        ("panels/1/fieldConfig/defaults/thresholds/mode", "relative"),
        ("panels/1/options/legend/placement", "left"),
        ("panels/1/options/tooltip/mode", "some"),
        ("panels/1/targets/0/expresion", "up"),
        ("panels/1/targets/0/expr", 1),
        ("templating/list/1/type", "queries"),
        ("templating/list/1/refresh", 5),
    ],
)
def test_a_mistake_would_be_found(place: str, wrong: Any) -> None:
    model = json.loads(FILES[0].read_text("utf-8"))
    *way, last = [int(step) if re.fullmatch(r"\d+", step) else step for step in place.split("/")]
    spot = model
    for step in way:
        spot = spot[step]
    spot[last] = wrong
    assert faults(model), place
