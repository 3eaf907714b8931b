"""Any process of a node reports for all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import serve_app
from serve_app.telemetry import metrics
from serve_app.telemetry.process_metrics import exposition, metrics_folder

REPOSITORY = Path(serve_app.__file__).parents[1]
_REPLICA = """
import sys
from serve_app.telemetry import metrics
metrics.REQUESTS.labels("/v1/x", "200").inc(int(sys.argv[1]))
metrics.STREAMS_RUNNING.labels("m").set(int(sys.argv[1]))
metrics.TTFT_SECONDS.labels("m").observe(0.3)
print("written", flush=True)
sys.stdin.read()
"""
REQUESTS = 'parley_requests_total{route="/v1/x",status="200"}'
RUNNING = 'parley_num_requests_running{model_name="m"}'


@contextmanager
def replica(amount: int, **variables: str) -> Iterator[int]:
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
        yield process.pid


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
    assert found[REQUESTS] == 7
    assert found[RUNNING] == 7
    assert found['parley_time_to_first_token_seconds_count{model_name="m"}'] == 2
    assert found['parley_time_to_first_token_seconds_bucket{le="0.5",model_name="m"}'] == 2


def test_a_process_that_is_gone_holds_no_streams_but_has_answered_its_requests(
    tmp_path: Path,
) -> None:
    folder = str(tmp_path)
    with replica(2, PROMETHEUS_MULTIPROC_DIR=folder):
        with replica(5, PROMETHEUS_MULTIPROC_DIR=folder):
            assert samples(tmp_path)[RUNNING] == 7
        found = samples(tmp_path)
    assert found[RUNNING] == 2
    assert found[REQUESTS] == 7


def test_processes_that_are_gone_leave_no_files_of_their_own(tmp_path: Path) -> None:
    for _ in range(3):
        with replica(1, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)):
            pass
        found = samples(tmp_path)
    assert found[REQUESTS] == 3
    assert found['parley_time_to_first_token_seconds_bucket{le="+Inf",model_name="m"}'] == 3
    assert found['parley_time_to_first_token_seconds_count{model_name="m"}'] == 3
    assert RUNNING not in found
    assert {file.name for file in tmp_path.iterdir()} == {
        "counter_retired.db",
        "histogram_retired.db",
        "lock",
    }


def test_a_process_that_got_the_id_of_a_dead_one_does_not_bring_its_gauges_back(
    tmp_path: Path,
) -> None:
    """In a container that is started anew the ids are those of before."""
    with replica(5, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as pid:
        pass
    left = list(tmp_path.glob(f"*_{pid}-*.db"))
    assert left
    for file in left:
        began = file.stem.rpartition("-")[2]
        file.rename(file.with_name(file.name.replace(f"{pid}-{began}", f"{os.getpid()}-{began}")))
    found = samples(tmp_path)
    assert RUNNING not in found
    assert found[REQUESTS] == 5


def test_whoever_asks_while_the_dead_are_retired_finds_their_counts_once(tmp_path: Path) -> None:
    for _ in range(4):
        with replica(1, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)):
            pass
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(samples, [tmp_path] * 16))
    assert [each[REQUESTS] for each in found] == [4] * 16


def test_samples_lie_under_the_home_by_node_where_nothing_names_another_folder(
    tmp_path: Path,
) -> None:
    """Nodes may share a home, and their processes' ids."""
    with replica(2, PARLEY_HOME=str(tmp_path)):
        found = samples(tmp_path / "run" / "metrics" / socket.gethostname())
    assert found[RUNNING] == 2
    assert metrics_folder(tmp_path) == tmp_path / "run" / "metrics" / socket.gethostname()


def test_every_metric_is_listed_named_alike_and_explained() -> None:
    listed = {
        name: one for name in metrics.__all__ if hasattr(one := getattr(metrics, name), "describe")
    }
    made = {name for name, one in vars(metrics).items() if hasattr(one, "describe")}
    assert made - {"Counter", "Gauge", "Histogram"} == set(listed)
    for metric in listed.values():
        (described,) = metric.describe()
        assert described.name.startswith("parley_")
        assert described.documentation.endswith(".")
        if described.type == "histogram":
            assert described.name.endswith(("_seconds", "_tokens"))
