from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from load.memory import Memory

LARGE = 64 << 20
HOLDS = "held = b'x' * {}\nprint('holds', flush=True)\ninput()"


def holding(size: int) -> subprocess.Popen[str]:
    """Start a process that holds so many bytes until it is written to."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS.format(size), "worker.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    started = [holding(LARGE), holding(2 * LARGE)]
    yield started
    for worker in started:
        worker.kill()
        worker.communicate()


def test_memory_is_summed_by_kind_of_process_and_the_highest_is_kept(
    workers: list[subprocess.Popen[str]],
) -> None:
    memory = Memory(lambda: [psutil.Process(worker.pid) for worker in workers])
    both = memory.look()
    assert list(both) == ["worker.py"]
    assert 3 * LARGE < both["worker.py"] < 4 * LARGE
    workers.pop().communicate("\n")
    assert LARGE < memory.look()["worker.py"] < 2 * LARGE
    assert memory.highest == both


def test_a_process_that_has_ended_takes_nothing() -> None:
    worker = holding(0)
    gone = psutil.Process(worker.pid)
    worker.communicate("\n")
    assert sum(Memory(lambda: [gone]).look().values()) == 0
