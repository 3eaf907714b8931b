"""Ray's command line runs as it is told, in a process that leaves when nobody tells it anything."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from serve_app.cluster.processes import marked_processes
from serve_app.cluster.ray_starter import RayStarter

ENVIRONMENT = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}


@pytest.mark.parametrize(
    ("argument", "code", "said"), [("--help", 0, "--head"), ("--heat", 2, "No such option")]
)
def test_an_order_is_carried_out_and_what_ray_says_is_in_the_log(
    tmp_path: Path, argument: str, code: int, said: str
) -> None:
    log = tmp_path / "log"
    with RayStarter(uuid.uuid4().hex) as starter:
        assert starter.start([argument], ENVIRONMENT, log, timeout_s=60) == code
    assert said in log.read_text()


def test_a_start_that_takes_too_long_is_said_to_and_its_process_ended(tmp_path: Path) -> None:
    run_id = uuid.uuid4().hex
    with RayStarter(run_id) as starter:
        assert marked_processes(run_id)
        with pytest.raises(TimeoutError):
            starter.start(["--help"], ENVIRONMENT, tmp_path / "log", timeout_s=0)
    assert not marked_processes(run_id)


def test_without_an_order_it_leaves_with_the_one_who_began_it() -> None:
    run_id = uuid.uuid4().hex
    with RayStarter(run_id):
        pass
    assert not marked_processes(run_id)
    # What a killed `parley up` leaves behind: an input that ends.
    left = subprocess.run(
        [sys.executable, "-m", "serve_app.cluster.ray_starter"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    assert (left.stdout, left.stderr) == (b"", b"")
