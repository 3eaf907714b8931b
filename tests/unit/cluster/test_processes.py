"""Processes are found by their mark, and all of them are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from serve_app.cluster.guard import Guard
from serve_app.cluster.processes import MARK, alive, end_marked, marked_processes

# A child that detaches, ignores SIGTERM, and whose parent is gone: as stubborn as it gets.
_STUBBORN = """
import os, signal, sys, time
if os.fork():
    sys.exit()
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def mark():
    run_id = uuid.uuid4().hex
    yield run_id
    for process in marked_processes(run_id):
        process.kill()


def start(code: str, run_id: str) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: run_id}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.wait()
    return pid


def test_an_orphan_that_ignores_sigterm_is_ended(mark: str) -> None:
    pid = start(_STUBBORN, mark)
    assert [process.pid for process in marked_processes(mark)] == [pid]
    assert end_marked(mark, grace_s=0.2) == 1
    assert marked_processes(mark) == []
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_of_another_run_is_left_alone(mark: str) -> None:
    other = uuid.uuid4().hex
    pid = start(_STUBBORN, other)
    try:
        assert end_marked(mark, grace_s=0.1) == 0
        assert psutil.Process(pid).is_running()
    finally:
        end_marked(other, grace_s=0)


def test_a_recycled_process_id_is_not_taken_for_the_old_process() -> None:
    me = psutil.Process()
    assert alive(me.pid, me.create_time())
    assert not alive(me.pid, me.create_time() - 100)


@pytest.mark.parametrize("phase", ["starting", "running"])
def test_the_guard_cleans_up_after_kill_9(tmp_path: Path, mark: str, phase: str) -> None:
    script = tmp_path / "up.py"
    script.write_text(
        f"""
import os, signal, subprocess, sys
from pathlib import Path
from serve_app.cluster.guard import Guard
from serve_app.cluster.run_folder import RunFolder, RunState
home = Path({str(tmp_path / "home")!r})
guard = Guard(home)
guard.run_id = {mark!r}
with guard:
    folder = RunFolder(home)
    folder.create()
    folder.save(RunState(run_id=guard.run_id, phase={phase!r}, pid=os.getpid(), pid_started=0,
        began=0, url="", dashboard="http://127.0.0.1:9", deploy_file="", model="", own_redis=True))
    subprocess.Popen(["sleep", "600"], env={{**os.environ, "{MARK}": guard.run_id}})
    print(guard._process.pid, flush=True)
    signal.pause()
"""
    )
    up = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
    )
    assert up.stdout is not None
    guard = psutil.Process(int(up.stdout.readline()))
    began = guard.create_time()
    assert len(marked_processes(mark)) == 1
    up.send_signal(signal.SIGKILL)
    up.wait()
    deadline = time.monotonic() + 30
    while alive(guard.pid, began):
        assert time.monotonic() < deadline, "the guard does not end"
        time.sleep(0.05)
    assert not (tmp_path / "home" / "run" / "state.json").exists()
    assert marked_processes(mark) == []


def test_a_command_whose_guard_was_killed_ends_as_well(tmp_path: Path) -> None:
    with Guard(tmp_path) as guard:
        assert guard._process is not None
        guard._process.kill()
        guard._process.wait()
    assert not (tmp_path / "run").exists()
