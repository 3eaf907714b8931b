"""A client on the server's machine, scheduled as if it had one of its own.

A server that is asked for more than it can do takes every core. A client that has to queue for one sends
late, and reads answers long after they have come: measured that way, a refusal takes as long as the
client waits for a core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["punctual"]

_LOWEST = 1


@contextmanager
def punctual() -> Iterator[bool]:
    """Have this thread run as soon as it has anything to do, whatever else does.

    What it starts meanwhile is scheduled as usual.

    Yields:
        Whether the system lets it; that takes root, or CAP_SYS_NICE.
    """
    if not hasattr(os, "sched_setscheduler"):  # not on Linux
        yield False
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_LOWEST))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)
