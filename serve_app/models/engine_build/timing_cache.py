"""What builds have measured of kernels, kept under PARLEY_HOME for the next one.

There is one file per GPU and version of TensorRT: what was measured elsewhere is of no use. It is
locked for as long as a build goes on. Two builds that measure at once would disturb each other.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.models.checkpoint import Progress

__all__ = ["TimingCacheFile"]


class TimingCacheFile:
    """The timing cache of one GPU and one TensorRT.

    Args:
        home: PARLEY_HOME.
        gpu: name of the GPU.
        tensorrt: version of TensorRT.
    """

    def __init__(self, home: Path, *, gpu: str, tensorrt: str) -> None:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu} {tensorrt}").strip("-")
        self.path = home / "timing-caches" / f"{name}.bin"

    @contextmanager
    def held(self, progress: Progress) -> Iterator[None]:
        """Keep others from building on this GPU meanwhile; wait for one that does.

        Raises:
            OSError: the folder can't be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another build on this GPU", 0, 0)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> bytes:
        """Return what was measured; nothing where there is no file yet."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def write(self, content: bytes) -> None:
        """Replace the file by another, whole or not at all.

        Raises:
            OSError: the disk is full or the folder can't be written.
        """
        draft = self.path.with_suffix(".partial")
        draft.write_bytes(content)
        draft.replace(self.path)
