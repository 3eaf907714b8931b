"""A replica says what it takes of its machine."""

from __future__ import annotations

import os
import time
from typing import Any

import psutil

from serve_app.telemetry import metrics
from serve_app.telemetry.process_report import ProcessReport


def value(metric: Any, deployment: str) -> float:
    return float(metric.labels(deployment)._value.get())


def test_memory_processor_and_files_are_those_of_the_process() -> None:
    report = ProcessReport("Measured")
    report.write()
    resident = psutil.Process().memory_info().rss
    assert 0.5 * resident < value(metrics.RESIDENT_MEMORY, "Measured") < 2 * resident
    before, open_before = time.process_time(), value(metrics.OPEN_FILES, "Measured")
    while time.process_time() - before < 0.2:
        pass
    handles = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    counted = value(metrics.CPU_SECONDS, "Measured")
    try:
        report.write()
    finally:
        for handle in handles:
            os.close(handle)
    assert value(metrics.CPU_SECONDS, "Measured") - counted >= 0.1
    assert value(metrics.OPEN_FILES, "Measured") >= open_before + 15


def test_each_start_counts() -> None:
    for _ in range(3):
        ProcessReport("Starting")
    assert value(metrics.REPLICAS, "Starting") == 1
    assert value(metrics.REPLICA_STARTS, "Starting") == 3
