"""Follows a run in the background, for as long as `parley up --detach` has left it there.

Serve brings its own replicas back and Ray its workers; Redis has only this process to do it. When
Ray itself is gone there is nothing left to serve, and what remains of the run is ended.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from serve_app.cluster.launch import follow
from serve_app.cluster.processes import MARK
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.cluster.steps import Quiet
from serve_app.cluster.teardown import stop
from serve_app.errors import ParleyError

__all__ = ["main", "watch_in_background"]

logger = logging.getLogger(__name__)


def watch_in_background(home: Path, state: RunState) -> None:
    """Start the process that follows a run; `parley down` ends it with the others."""
    with RunFolder(home).start_log("watch").open("wb") as log:
        subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", __spec__.name, str(home)],
            env={**os.environ, MARK: state.run_id},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class _Log(Quiet):
    """Steps that leave their notes in the log."""

    def note(self, text: str) -> None:
        logger.warning(text)


def main() -> None:
    """Follow the home's run until it ends."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    home = Path(sys.argv[1])
    state = RunFolder(home).state()
    if state is None:
        return
    # This process carries the mark already. A Redis that it starts must not: it ends after the others.
    os.environ.pop(MARK, None)
    try:
        follow(home, state, _Log())
    except ParleyError as error:
        logger.error(error.message)
        stop(home, Quiet(), drain=False)


if __name__ == "__main__":
    main()
