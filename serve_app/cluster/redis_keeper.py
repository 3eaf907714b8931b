"""Keeping a run's own Redis up: nobody else starts it again when it dies."""

from __future__ import annotations

import os
import select
import subprocess
import time
from contextlib import suppress
from urllib.parse import urlsplit

from serve_app.cluster.run_folder import RunFolder
from serve_app.cluster.steps import Steps
from serve_app.errors import ParleyError
from serve_app.state.server import RedisServer

__all__ = ["RedisKeeper"]

_SHORTEST_PAUSE_S = 3.0
_LONGEST_PAUSE_S = 60.0


class RedisKeeper:
    """Starts a Redis that died again; one that can't start is tried again after a growing pause.

    What needs no conversation is served without Redis, so its loss ends nothing: it is told, and the
    run's folder says why for as long as it lasts.

    Args:
        folder: the run's files.
        steps: told what happens.
    """

    def __init__(self, folder: RunFolder, steps: Steps) -> None:
        self._folder = folder
        self._steps = steps
        self._redis = RedisServer(folder.home)
        # The replicas know this address and no other.
        url = self._redis.url()
        self._port = urlsplit(url.get_secret_value()).port if url else None
        self._pause_s = 0.0
        self._next_try = 0.0

    def look(self) -> None:
        """Start Redis again if it is gone, unless the last try was only just now."""
        try:
            if self._redis.running() is None:
                if time.monotonic() < self._next_try:
                    return
                self._steps.note("Redis is gone; starting it again with what it had stored.")
                self._redis.start(self._port)
        except ParleyError as error:
            self._put_off(error.message)
        except (OSError, subprocess.SubprocessError) as error:
            self._put_off(f"{error}.")
        else:
            if self._pause_s:
                self._steps.note("Redis is back.")
                self._pause_s = self._next_try = 0.0
                self._folder.redis_trouble.unlink(missing_ok=True)

    def wait(self, seconds: float) -> None:
        """Wait for some seconds, or until Redis dies."""
        if self._pause_s:
            time.sleep(seconds)  # it is dead, and that is known
            return
        try:
            if (pid := self._redis.pid) is None:
                return
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            select.select([descriptor], [], [], seconds)
        finally:
            os.close(descriptor)

    def _put_off(self, reason: str) -> None:
        self._pause_s = min(max(2 * self._pause_s, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
        self._next_try = time.monotonic() + self._pause_s
        self._steps.note(
            f"Redis does not start: {reason} What needs no conversation is still served; "
            f"the next try is in {self._pause_s:g} s."
        )
        with suppress(OSError):  # on a full disk the note has to do
            self._folder.redis_trouble.write_text(reason)
