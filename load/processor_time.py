"""Processor time by kind of process, between two moments."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import psutil

from serve_app.cluster.processes import marked_processes

__all__ = ["ProcessorTime", "kind_of"]

_OWN = "the clients"
_REPLICA = "ray::ServeReplica:"
_DASHBOARD = "ray-dashboard"  # a process for each of its parts


class ProcessorTime:
    """What the processes of a run, and this one, have spent since some moment.

    Args:
        run_id: mark of the run's processes.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._before: dict[psutil.Process, float] = {}

    def begin(self) -> None:
        """Count from now on."""
        self._before = {process: seconds for process, _, seconds in self._read()}

    def spent(self) -> dict[str, float]:
        """Return the seconds since `begin` by kind of process, the most first."""
        spent: defaultdict[str, float] = defaultdict(float)
        for process, kind, seconds in self._read():
            spent[kind] += seconds - self._before.get(process, 0.0)
        return dict(sorted(spent.items(), key=lambda kind: -kind[1]))

    def _read(self) -> list[tuple[psutil.Process, str, float]]:
        found = []
        for process in [psutil.Process(os.getpid()), *marked_processes(self._run_id)]:
            try:
                times = process.cpu_times()
                kind = _OWN if process.pid == os.getpid() else kind_of(process.cmdline())
            except psutil.NoSuchProcess:
                continue  # it has ended in between
            found.append((process, kind, times.user + times.system))
        return found


def kind_of(command: list[str]) -> str:
    """Name a process: a replica by its deployment, another one by its program."""
    if not command:
        return "others"
    title = command[0]
    if title.startswith(_REPLICA):
        return title.removeprefix(_REPLICA).split(":")[-1]
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0]
    if title.startswith(_DASHBOARD):
        return _DASHBOARD
    # Some write all of their arguments into the first: Redis, and what Ray forks from a server.
    program = Path(title.split()[0]).name
    if not program.startswith("python"):
        return program
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return next((Path(word).name for word in command if word.endswith(".py")), program)
