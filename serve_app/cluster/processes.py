"""The processes of one run: found by a mark in their environment, ended with all their children.

Every process that a run starts inherits the mark, however deep it sits and whoever has adopted it,
so finding them needs no record that could be incomplete or name a recycled process id.
"""

from __future__ import annotations

import os
import time

import psutil

__all__ = ["MARK", "alive", "end_marked", "marked_processes", "memory_bytes"]

MARK = "PARLEY_RUN_ID"

_POLL_S = 0.05


def marked_processes(run_id: str) -> list[psutil.Process]:
    """Return the living processes that carry the run's mark, without the caller."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        environment = process.info["environ"]  # None where it belongs to somebody else
        if not environment or environment.get(MARK) != run_id or process.pid == os.getpid():
            continue
        if process.info["status"] not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}:
            found.append(process)
    return found


def end_marked(run_id: str, *, grace_s: float) -> int:
    """End every process of the run: politely first, by force after `grace_s`.

    Returns:
        How many there were.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    # Again and again, because what is being ended may still start something.
    while processes := marked_processes(run_id):
        for process in processes:
            ended.add(process.pid)
            try:
                if time.monotonic() >= deadline:
                    process.kill()
                elif process.pid not in told:
                    process.terminate()
                    told.add(process.pid)
            except psutil.NoSuchProcess:
                continue  # it has ended in between
        psutil.wait_procs(processes, timeout=_POLL_S)
    return len(ended)


def alive(pid: int, started: float) -> bool:
    """Say whether the process that began at `started` (Unix seconds) still runs under its id."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and (
            process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def memory_bytes(process: psutil.Process) -> int:
    """Return the memory that a process takes, its share of what others map too; 0 if it is gone."""
    try:
        memory = process.memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    # Linux shares a page's size among those who map it; elsewhere count what nobody else maps.
    return int(getattr(memory, "pss", memory.uss))
