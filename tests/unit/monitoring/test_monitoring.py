"""Rules and dashboards name metrics that there are, fire when they should, and lead to a runbook."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

import serve_app.errors
from serve_app.errors import ParleyError
from serve_app.telemetry import metrics
from serve_app.telemetry.outcomes import OTHER

REPOSITORY = Path(__file__).parents[3]
MONITORING = REPOSITORY / "deploy" / "monitoring"
PROMETHEUS = MONITORING / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL_RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in ALL_RULES if "record" in rule}
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
PARTS = re.compile(r"_(total|bucket|count|sum)$")


def module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"generate_{file.parent.name}", file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # where dataclasses look their annotations up
    spec.loader.exec_module(loaded)
    return loaded


DASHBOARDS: dict[str, dict[str, Any]] = module(MONITORING / "grafana" / "generate.py").dashboards()


def served_names() -> set[str]:
    """Return the name of every series that Parley's registry exposes."""
    assert metrics.SLOTS is not None  # its import is what registers them
    endings = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_count", "_sum"),
        "gauge": ("",),
    }
    return {
        family.name + ending
        for family in REGISTRY.collect()
        if family.name.startswith("parley_")
        for ending in endings[family.type]
    }


def named(expression: str) -> set[str]:
    """Return the metrics that an expression names, recorded ones and Ray's too."""
    without_values = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:parley[_:]|ray_)[a-z0-9_:]+", without_values))


def queries() -> Iterator[tuple[str, str]]:
    for rule in ALL_RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for file, model in DASHBOARDS.items():
        for panel in model["panels"]:
            for target in panel.get("targets", []):
                yield f"{file}: {panel['title']}", target["expr"]
        for variable in model["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{file}: {variable['name']}", variable["query"]["query"]


def unknown(expression: str) -> set[str]:
    """Return the metrics of ours that there aren't; of Ray's, a scrape of a real cluster tells."""
    ours = {name for name in named(expression) if not name.startswith("ray_")}
    return ours - served_names() - RECORDED


def test_every_metric_that_is_named_exists() -> None:
    assert {where: bad for where, expr in queries() if (bad := unknown(expr))} == {}


def test_a_misspelt_metric_would_be_found() -> None:
    assert unknown("sum(rate(parley_request_total[5m]))") == {"parley_request_total"}
    assert unknown("parley_slot") == {"parley_slot"}


def test_a_query_names_a_metric() -> None:
    nameless = [
        where for where, expr in queries() if not named(expr) and not expr.startswith("up{")
    ]
    assert nameless == []


def labels_of_metrics() -> dict[str, set[str]]:
    """Return the labels of each series that Parley exposes, and those that a scrape adds."""
    found = {}
    for name in metrics.__all__:
        metric = getattr(metrics, name)
        if hasattr(metric, "describe"):
            (described,) = metric.describe()
            found[described.name] = {*metric._labelnames, "job", "instance"}
    return found


def foreign_labels(expression: str) -> set[tuple[str, str]]:
    """Return what an expression chooses by, of labels that the metric doesn't have."""
    known = labels_of_metrics()
    return {
        (name, label)
        for name, chosen in re.findall(r"\b(parley_\w+)\{([^}]*)\}", expression)
        for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', chosen)
        if label not in known[PARTS.sub("", name)] | {"le"}
    }


def test_labels_are_those_that_the_metrics_have() -> None:
    assert {where: bad for where, expr in queries() if (bad := foreign_labels(expr))} == {}
    grouped = {
        label
        for _, expr in queries()
        for labels in re.findall(r"\bby \(([^)]*)\)", expr)
        for label in re.split(r",\s*", labels)
    }
    of_ray = {"deployment"}
    assert grouped <= set().union(*labels_of_metrics().values()) | {"le"} | of_ray


def test_a_label_that_the_metric_lacks_would_be_found() -> None:
    assert foreign_labels('parley_slots{job=~"$job", route="/"}') == {("parley_slots", "route")}
    assert foreign_labels('parley_redis_seconds_bucket{le="1"}') == set()


def test_vllms_dashboard_finds_all_that_it_shows() -> None:
    """With `parley_` in the place of `vllm:`: examples/observability/prometheus_grafana of its repository."""
    shown = {
        "e2e_request_latency_seconds": {"model_name"},
        "prompt_tokens": {"model_name"},
        "generation_tokens": {"model_name"},
        "inter_token_latency_seconds": {"model_name"},
        "num_requests_running": {"model_name"},
        "num_requests_waiting": {"model_name"},
        "time_to_first_token_seconds": {"model_name"},
        "kv_cache_usage_perc": {"model_name"},
        "request_prompt_tokens": {"model_name"},
        "request_generation_tokens": {"model_name"},
        "request_success": {"model_name", "finished_reason"},
        "request_queue_time_seconds": {"model_name"},
        "request_prefill_time_seconds": {"model_name"},
        "request_decode_time_seconds": {"model_name"},
        "request_max_num_generation_tokens": {"model_name"},
    }
    known = labels_of_metrics()
    assert {
        name: labels
        for name, labels in shown.items()
        if not labels <= known.get(f"parley_{name}", set())
    } == {}


def test_error_codes_in_rules_exist() -> None:
    source = "\n".join(file.read_text("utf-8") for file in (REPOSITORY / "serve_app").rglob("*.py"))
    codes = {
        one.code
        for one in vars(serve_app.errors).values()
        if isinstance(one, type) and issubclass(one, ParleyError)
    }
    codes |= set(re.findall(r'code="(\w+)"', source)) | {OTHER}
    used = {
        code
        for _, expr in queries()
        for chosen in re.findall(r'code=~?"([^"]+)"', expr)
        for code in chosen.split("|")
    }
    assert used
    assert used <= codes


def test_every_failure_of_ours_uses_the_budget_up() -> None:
    section = (REPOSITORY / "docs" / "api.md").read_text("utf-8").split("\n## Errors\n")[1]
    ours = {
        code
        for code, status in re.findall(r"^\| `(\w+)` \| (\d{3}) \|", section, re.MULTILINE)
        if int(status) >= 500
    }
    for rule in ALL_RULES:
        if rule.get("record", "").startswith("parley:request_errors:"):
            (counted,) = re.findall(r'code=~"([^"]+)"', rule["expr"])
            assert set(counted.split("|")) == ours | {OTHER}


def test_the_late_threshold_is_a_bucket() -> None:
    metrics.TTFT_SECONDS.labels("a-model")
    bounds = {
        sample.labels["le"]
        for family in metrics.TTFT_SECONDS.collect()
        for sample in family.samples
        if sample.name.endswith("_bucket")
    }
    used = {le for _, expr in queries() for le in re.findall(r'le="([^"]+)"', expr)}
    assert used == {"2.5"}
    assert used <= bounds


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_has_a_severity_a_summary_and_a_runbook(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"]
    text = (REPOSITORY / alert["annotations"]["runbook"]).read_text("utf-8")
    assert alert["alert"] in text
    for heading in ("## What it means", "## Look", "## Do"):
        assert heading in text, heading


def test_every_runbook_belongs_to_an_alert() -> None:
    used = {Path(alert["annotations"]["runbook"]).name for alert in ALERTS}
    assert {file.name for file in RUNBOOKS.glob("*.md")} == used


def panels() -> set[str]:
    """Return what runbooks may tell to look at: dashboards, and the titles on them."""
    return {model["title"] for model in DASHBOARDS.values()} | {
        panel["title"] for model in DASHBOARDS.values() for panel in model["panels"]
    }


@pytest.mark.parametrize("runbook", sorted(RUNBOOKS.glob("*.md")), ids=lambda file: file.stem)
def test_a_runbook_looks_at_panels_that_there_are(runbook: Path) -> None:
    of_prometheus = {"Targets"}
    named = re.findall(r"(?<!\*)\*([A-Z][^*\n]+(?:\n[^*\n]+)?)\*(?!\*)", runbook.read_text("utf-8"))
    shown = {re.sub(r"\s+", " ", name) for name in named} - of_prometheus
    assert shown <= panels()
    # One that shows no dashboard is about what can't be shown.
    assert shown or runbook.stem in ("no-slots", "not-scraped")


def test_the_runbook_of_availability_knows_every_code_that_uses_the_budget_up() -> None:
    text = (RUNBOOKS / "availability.md").read_text("utf-8")
    (rule,) = [
        rule for rule in ALL_RULES if rule.get("record", "").endswith("request_errors:ratio_rate5m")
    ]
    (counted,) = re.findall(r'code=~"([^"]+)"', rule["expr"])
    assert {code for code in counted.split("|") if f"`{code}`" not in text} == set()


@pytest.mark.parametrize("file", DASHBOARDS)
def test_the_dashboard_is_what_the_generator_writes(file: str) -> None:
    written = (MONITORING / "grafana" / "dashboards" / file).read_text("utf-8")
    assert json.loads(written) == DASHBOARDS[file]


@pytest.mark.parametrize("file", DASHBOARDS)
def test_panels_have_numbers_of_their_own_and_room(file: str) -> None:
    panels = DASHBOARDS[file]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_is_on_a_dashboard() -> None:
    shown: set[str] = set()
    for where, expr in queries():
        if ".json" in where:
            shown |= named(expr)
    for rule in ALL_RULES:
        if rule.get("record") in shown:
            shown |= named(rule["expr"])
    families = {PARTS.sub("", name) for name in served_names()}
    assert families <= {PARTS.sub("", name) for name in shown}


def test_grafana_finds_the_dashboards_and_prometheus() -> None:
    folder = MONITORING / "grafana" / "provisioning"
    provider = yaml.safe_load((folder / "dashboards" / "parley.yaml").read_text())["providers"][0]
    compose = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[1] for volume in compose["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    sources = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    assert "prometheus" in compose


def test_kubernetes_gets_the_same_rules() -> None:
    component = REPOSITORY / "k8s" / "components" / "monitoring"
    manifest = (component / "prometheus-rule.yaml").read_text("utf-8")
    assert manifest == module(component / "generate.py").prometheus_rule()
    assert yaml.safe_load(manifest)["spec"]["groups"] == RULES["groups"]


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_promtool_takes_the_rules(promtool: str) -> None:
    done = run(promtool, "check", "rules", "rules.yaml", folder=PROMETHEUS)
    assert done.returncode == 0, done.stderr
    assert f"{len(ALL_RULES)} rules found" in done.stdout


def test_promtool_takes_the_configuration(promtool: str) -> None:
    done = run(promtool, "check", "config", "--syntax-only", "prometheus.yaml", folder=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_no_other_does(promtool: str) -> None:
    done = run(promtool, "test", "rules", "rules.test.yaml", folder=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_situation_that_raises_it() -> None:
    situations = (PROMETHEUS / "rules.test.yaml").read_text()
    expected = set(re.findall(r'alertname="(\w+)"', situations))
    assert expected == {alert["alert"] for alert in ALERTS}


def test_an_alert_that_is_gone_is_missed(promtool: str, tmp_path: Path) -> None:
    """A run of the rules' own tests can fail: without the parts' alerts it does."""
    shutil.copy(PROMETHEUS / "rules.test.yaml", tmp_path)
    without = [group for group in RULES["groups"] if group["name"] != "parley-parts"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": without}))
    done = run(promtool, "test", "rules", "rules.test.yaml", folder=tmp_path)
    assert done.returncode != 0
    assert "ParleyRedisUnavailable" in done.stdout + done.stderr
