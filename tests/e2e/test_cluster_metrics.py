"""A real Prometheus that scrapes a real cluster has all that dashboards and rules look for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from cluster_home import REPOSITORY, REQUEST_S, ClusterHome, wait_for

from serve_app.cluster.ports import free_ports

MONITORING = REPOSITORY / "deploy" / "monitoring"
ON_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}
"""Metrics that Ray has of a node with GPUs alone."""
SCRAPED_S = 60.0
NAME = re.compile(r"\b(?:parley[_:]|ray_)[a-z0-9_:]+")


class Prometheus:
    """A running Prometheus with the rules of deploy/monitoring, as its HTTP API shows it."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=REQUEST_S, trust_env=False)

    def get(self, path: str, **given: str) -> Any:
        answer = self._http.get(path, params=given).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def answers(self) -> bool:
        with suppress(httpx.TransportError):
            return self._http.get("/status/runtimeinfo").is_success
        return False

    def value(self, expression: str) -> float:
        """Return what an expression comes to; nan where it comes to nothing."""
        result = self.get("/query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else float("nan")

    def names(self) -> set[str]:
        return set(self.get("/label/__name__/values"))

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("/rules")["groups"] for rule in group["rules"]]

    def close(self) -> None:
        self._http.close()


def ray_targets(cluster: ClusterHome) -> Path:
    """Return the file in which Ray says where its metrics are."""
    return cluster.folder.work_folder() / "ray" / "prom_metrics_service_discovery.json"


@pytest.fixture
def scraping(cluster: ClusterHome, prometheus: str, tmp_path: Path) -> Iterator[Prometheus]:
    """The Prometheus that scrapes the shared cluster's node, and Ray's own metrics."""
    settings = {
        "global": {"scrape_interval": "4s", "scrape_timeout": "4s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "prometheus" / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "parley",
                "static_configs": [{"targets": [f"127.0.0.1:{cluster.metrics_port}"]}],
            },
            {
                "job_name": "parley-ray",
                "file_sd_configs": [{"files": [str(ray_targets(cluster))]}],
            },
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    (port,) = free_ports(1)
    with (
        (tmp_path / "prometheus.log").open("w") as log,
        subprocess.Popen(
            [
                prometheus,
                f"--config.file={tmp_path / 'prometheus.yaml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        running = Prometheus(f"http://127.0.0.1:{port}")
        try:
            wait_for(lambda: process.poll() is not None or running.answers(), REQUEST_S)
            assert process.poll() is None, (tmp_path / "prometheus.log").read_text()
            yield running
        finally:
            running.close()
            process.terminate()


def expressions() -> Iterator[tuple[str, str]]:
    """Yield (where, expression) of every rule and panel."""
    rules = yaml.safe_load((MONITORING / "prometheus" / "rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for file in sorted((MONITORING / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{file.name}: {panel['title']}", target["expr"]


def wanted() -> dict[str, list[str]]:
    """Return every metric that a rule or panel names, and which ones do."""
    found: dict[str, list[str]] = {}
    for where, expression in expressions():
        for name in NAME.findall(re.sub(r'"[^"]*"', '""', expression)):
            found.setdefault(name, []).append(where)
    return found


def talk(cluster: ClusterHome) -> None:
    """Bring a little of everything: a chat, a conversation, a mistake, a refusal."""
    with cluster.client() as client:
        model = cluster.model()
        asked: Any = [{"role": "user", "content": "Say something about the sea."}]
        client.chat.completions.create(model=model, messages=asked, max_tokens=8)
        conversation = client.conversations.create().id
        for said in ("Hello.", "And then?"):
            client.responses.create(
                model=model, conversation=conversation, input=said, max_output_tokens=8
            )
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=model, messages=asked, temperature=9)
    refused = httpx.post(f"{cluster.url}/v1/responses", content=b"x" * 2_000_000, timeout=REQUEST_S)
    assert refused.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE


def test_every_metric_that_a_panel_or_rule_names_is_in_the_scrape_of_a_cluster(
    cluster: ClusterHome, scraping: Prometheus
) -> None:
    wait_for(lambda: scraping.value("sum(up)") == 2)  # whoever starts beside others answers late
    chats = 'sum(parley_requests_total{route="/v1/chat/completions"})'
    talk(cluster)
    wait_for(lambda: scraping.value(chats) >= 2, REQUEST_S)
    talk(cluster)  # seen a second time, so that there are rates
    names = wanted()
    assert len(names) > 60
    needed = names.keys() - ON_GPUS
    with suppress(AssertionError):  # which would not say what is missing
        wait_for(lambda: needed <= scraping.names(), SCRAPED_S)
    assert {name: names[name] for name in needed - scraping.names()} == {}

    for expression, least in (
        ('parley_requests_total{route="/v1/chat/completions", status="200"}', 1),
        ("parley_time_to_first_token_seconds_count", 3),
        ('parley_turns_total{outcome="generated"}', 3),
        ('parley_redis_seconds_count{operation="commit"}', 2),
        ('parley_errors_total{code="invalid_value"}', 1),
        ('parley_requests_rejected_total{reason="body_too_large"}', 1),
        ('parley_replicas{deployment="Generator"}', 1),
        ("parley_resident_memory_bytes", 1e6),
        ('up{job="parley"}', 1),
    ):
        wait_for(lambda: scraping.value(f"max({expression})") >= least, REQUEST_S)  # noqa: B023
    # What has never happened is there nevertheless: its first time is an increase.
    assert scraping.value('parley_errors_total{code="engine_error"}') >= 0
    assert scraping.value('parley_redis_failures_total{operation="commit"}') >= 0

    wait_for(lambda: all(rule["health"] == "ok" for rule in scraping.rules()), REQUEST_S)
    written = yaml.safe_load((MONITORING / "prometheus" / "rules.yaml").read_text())["groups"]
    assert len(scraping.rules()) == sum(len(group["rules"]) for group in written)


def test_every_panel_is_a_query_that_prometheus_takes(
    cluster: ClusterHome, scraping: Prometheus
) -> None:
    filled = {"$job": ".+", "$model_name": ".+", "$__rate_interval": "1m"}
    for where, expression in expressions():
        for name, value in filled.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, where
        scraping.get("/query", query=expression)


def test_the_node_answers_as_the_ingress_does(cluster: ClusterHome) -> None:
    """There is one node, so both tell of the same replicas."""
    cluster.model()
    node, ingress = (
        httpx.get(f"{url}/metrics", timeout=REQUEST_S, trust_env=False).text
        for url in (f"http://127.0.0.1:{cluster.metrics_port}", cluster.url)
    )
    series = [
        {line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")}
        for text in (node, ingress)
    ]
    assert series[0] <= series[1]
    assert len(series[0]) > 300
