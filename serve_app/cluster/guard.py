"""A small process that outlives `parley up` only to clean up after it.

Nothing can be done in a process that `kill -9` ends. The guard reads a pipe whose other end only
`parley up` holds: a last word on it means that all is in order, its end without one that `parley up`
has died, and then the guard ends what that had started.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from types import TracebackType

__all__ = ["Guard", "main"]

_RELEASED = b"released"


class Guard:
    """Watches over one run while the command that started it lives.

    Args:
        home: PARLEY_HOME.

    Attributes:
        run_id: mark of the run that it watches over.
    """

    def __init__(self, home: Path) -> None:
        self.run_id = uuid.uuid4().hex
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guard:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", __spec__.name, str(self._home), self.run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Out of reach of Ctrl-C and of whoever ends the group of `parley up`.
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None  # noqa: S101 - set on entering
        try:
            self._process.communicate(_RELEASED)
        except BrokenPipeError:
            self._process.wait()  # somebody has killed the guard; it guards nothing any more


def main() -> None:
    """Wait for the last word, and clean up when there is none."""
    home, run_id = Path(sys.argv[1]), sys.argv[2]
    if sys.stdin.buffer.read() == _RELEASED:
        return
    # Imported late: in the usual case none of it is needed.
    from serve_app.cluster.run_folder import RunFolder
    from serve_app.cluster.steps import Quiet
    from serve_app.cluster.teardown import end_run

    folder = RunFolder(home)
    with folder.locked():
        state = folder.state()
        if state is not None and state.run_id == run_id:
            end_run(folder, state, Quiet(), drain=state.phase == "running")


if __name__ == "__main__":
    main()
