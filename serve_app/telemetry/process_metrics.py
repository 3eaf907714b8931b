"""Prometheus metrics that any process of a node can report for all of them.

Every replica is a process of its own; prometheus-client's multiprocess mode keeps each one's
samples in memory-mapped files of one folder, so that a scrape of any process sees the whole node.
The folder has to be named before prometheus-client is imported first, hence this module: import
`prometheus_client` only through it.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.settings import parley_home

__all__ = ["exposition", "metrics_folder"]


def metrics_folder(home: Path | None = None) -> Path:
    """Return the folder of this node's samples, made if it isn't there.

    It carries the machine's name, because nodes may share a PARLEY_HOME.

    Args:
        home: a PARLEY_HOME; None takes what this process's environment says.
    """
    own = (home or parley_home()) / "run" / "metrics" / socket.gethostname()
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR") or own) if home is None else own
    folder.mkdir(parents=True, exist_ok=True)
    return folder


os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_folder())

from prometheus_client import CollectorRegistry, generate_latest, values  # noqa: E402
from prometheus_client.mmap_dict import MmapedDict  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402

_own = (0, "")


def _identity() -> str:
    """Return what names this process's files: its id and when it began, since ids are used again.

    A container that is started anew hands out the same ids at once.
    """
    global _own
    pid = os.getpid()
    if _own[0] != pid:
        _own = (pid, f"{pid}-{_began(pid)}")
    return _own[1]


def _began(pid: int) -> str:
    """Return when a process began, in ticks since the machine did; "" where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The name, in parentheses, may hold anything; the 22nd field counts from before it.
    return stat.rpartition(")")[2].split()[19]


values.ValueClass = values.MultiProcessValue(_identity)  # type: ignore[no-untyped-call]


def exposition(folder: Path | None = None) -> bytes:
    """Return a node's samples in Prometheus' text format.

    Args:
        folder: where the node's processes write them; None takes this process's own folder.
    """
    folder = folder or metrics_folder()
    # Whoever else is asked meanwhile would find the dead's samples twice, or not at all.
    with _alone_in(folder):
        _retire_the_dead(folder)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _retire_the_dead(folder: Path) -> None:
    """Forget the gauges of processes that are gone, and add up their counters.

    Counters go on counting; but a file for each process that ever ran would fill the disk, and make
    each scrape take longer than the one before.
    """
    dead = [file for file in folder.glob("*_*.db") if not _belongs_to_the_living(file)]
    for kind in ("counter", "histogram"):
        files = [file for file in dead if file.name.startswith(f"{kind}_")]
        if files:
            _add_up(files, folder / f"{kind}_{_RETIRED}.db")
    for file in dead:
        file.unlink(missing_ok=True)


_RETIRED = "retired"


def _belongs_to_the_living(file: Path) -> bool:
    owner = file.stem.rpartition("_")[2]
    if owner == _RETIRED:
        return True
    pid, _, began = owner.partition("-")
    return pid.isdigit() and _began(int(pid)) == began != ""


def _add_up(files: list[Path], total: Path) -> None:
    sums: defaultdict[str, float] = defaultdict(float)
    for file in [*files, *([total] if total.exists() else [])]:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
            sums[key] += value
    draft = total.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    written = MmapedDict(str(draft))  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    written.close()  # type: ignore[no-untyped-call]
    draft.replace(total)
