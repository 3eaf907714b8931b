"""What Serve starts in HAProxy's place: amends the configuration, has HAProxy followed, becomes it.

Serve starts HAProxy anew with each change of the replicas, and, if it has died, with a configuration
that knows no application until the next change. The launcher then gives it the last one that did.
This runs each time, so it imports nothing but the standard library.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from serve_app.cluster.haproxy_config import Amendments, has_routes, listeners
from serve_app.cluster.haproxy_keeper import Standby, followed, keeper_socket

__all__ = ["launch", "main"]

_ROUTED = "routed.cfg"
_RELOADS = "-sf"


def main() -> None:
    """Become HAProxy, with Serve's arguments behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--refusal", required=True)
    parser.add_argument("--head-ms", type=int, required=True)
    parser.add_argument("--on-loopback", type=int, nargs="*", default=())
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    launch(
        given.binary,
        given.arguments,
        Amendments(refusal=given.refusal, head_ms=given.head_ms, on_loopback=given.on_loopback),
    )


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
    text = amendments.applied(config.read_text())
    if has_routes(text):
        _replace(routed, text)
    elif reloads:
        routed.unlink(missing_ok=True)  # the application was taken away
    elif routed.exists() and listeners(routed.read_text()) == listeners(text):
        text = routed.read_text()
    _replace(config, text)
    return routed


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
