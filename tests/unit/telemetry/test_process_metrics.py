"""Any process of a node reports for all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import serve_app
from serve_app.telemetry import metrics
from serve_app.telemetry.process_metrics import exposition

REPOSITORY = Path(serve_app.__file__).parents[1]
_REPLICA = """
import sys
from serve_app.telemetry import metrics
metrics.REQUESTS.labels("/v1/x", "200").inc(int(sys.argv[1]))
metrics.STREAMS_RUNNING.set(int(sys.argv[1]))
metrics.TTFT_SECONDS.observe(0.3)
print("written", flush=True)
sys.stdin.read()
"""


@contextmanager
def replica(amount: int, **variables: str) -> Iterator[None]:
    """Run a process that counts `amount` requests and streams, as long as the block lasts."""
    inherited = {
        name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"
    }
    with subprocess.Popen(
        [sys.executable, "-c", _REPLICA, str(amount)],
        env=inherited | {"PYTHONPATH": str(REPOSITORY)} | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "written\n"
        yield


def samples(folder: Path) -> dict[str, float]:
    lines = exposition(folder).decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def test_the_samples_of_all_processes_are_added(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with (
        replica(2, PROMETHEUS_MULTIPROC_DIR=folder),
        replica(5, PROMETHEUS_MULTIPROC_DIR=folder),
    ):
        found = samples(tmp_path)
    assert found['parley_requests_total{route="/v1/x",status="200"}'] == 7
    assert found["parley_num_requests_running"] == 7
    assert found["parley_time_to_first_token_seconds_count"] == 2
    assert found['parley_time_to_first_token_seconds_bucket{le="0.5"}'] == 2


def test_a_process_that_is_gone_holds_no_streams_but_has_answered_its_requests(
    tmp_path: Path,
) -> None:
    folder = str(tmp_path)
    with replica(2, PROMETHEUS_MULTIPROC_DIR=folder):
        with replica(5, PROMETHEUS_MULTIPROC_DIR=folder):
            assert samples(tmp_path)["parley_num_requests_running"] == 7
        found = samples(tmp_path)
    assert found["parley_num_requests_running"] == 2
    assert found['parley_requests_total{route="/v1/x",status="200"}'] == 7


def test_samples_lie_under_the_home_where_nothing_names_another_folder(tmp_path: Path) -> None:
    with replica(2, PARLEY_HOME=str(tmp_path)):
        found = samples(tmp_path / "run" / "metrics")
    assert found["parley_num_requests_running"] == 2


def test_every_metric_is_listed_named_alike_and_explained() -> None:
    listed = {name: getattr(metrics, name) for name in metrics.__all__}
    made = {name for name, one in vars(metrics).items() if hasattr(one, "describe")}
    assert made - {"Counter", "Gauge", "Histogram"} == set(listed)
    for metric in listed.values():
        (described,) = metric.describe()
        assert described.name.startswith("parley_")
        assert described.documentation.endswith(".")
        if described.type == "histogram":
            assert described.name.endswith("_seconds")
