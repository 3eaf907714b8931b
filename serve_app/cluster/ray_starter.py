"""Ray's command line, imported before it is known what Ray is to start.

Importing it takes two seconds, in which `parley up` reads its deploy file, looks for the model and
starts Redis. So a process of its own imports it at once and then waits for an order on its standard
input. The end of that input without an order ends it, whatever has become of who began it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import orjson

from serve_app.cluster.processes import MARK

__all__ = ["AT_IMPORT", "RayStarter", "main"]

AT_IMPORT = {
    # Makes 127.0.0.1 a valid address of a node: Ray otherwise replaces it by the machine's outer
    # address, whatever --node-ip-address says.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Variables that Ray reads while it is imported."""


class RayStarter:
    """Runs `ray start` once, in a process that has Ray imported by then.

    Args:
        run_id: mark of the run that this process and all that it starts belong to.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._process: subprocess.Popen[bytes] | None = None
        # Of no name: where the log goes is known only with the order.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving

    def __enter__(self) -> RayStarter:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", __spec__.name],
            env={**os.environ, **AT_IMPORT, MARK: self._run_id},
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            # A session of its own: Ctrl-C at the terminal must not end Ray before what uses it.
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
        self._process.kill()  # where it has done its work it is gone already
        self._process.communicate()
        self._output.close()

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        timeout_s: float,
    ) -> int:
        """Run `ray start` and return its exit code.

        Args:
            arguments: what follows `ray start`.
            environment: all of its environment.
            log: gets what it says.
            timeout_s: seconds after which it is ended.

        Raises:
            TimeoutError: it took longer.
        """
        assert self._process is not None  # noqa: S101 - set on entering
        order = orjson.dumps({"arguments": list(arguments), "environment": dict(environment)})
        try:
            self._process.communicate(order, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            self._output.seek(0)
            log.write_bytes(self._output.read())
        return self._process.returncode


def main() -> None:
    """Import Ray's command line, wait for the order, and carry it out."""
    from ray.scripts.scripts import main as ray

    text = sys.stdin.buffer.read()
    if not text:
        return
    order = orjson.loads(text)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.stdin.close()
    sys.argv = ["ray", "start", *order["arguments"]]
    ray()


if __name__ == "__main__":
    main()
