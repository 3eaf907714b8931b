"""Ports of this machine: whether one is free, and who has it when it isn't."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import suppress

import psutil

from serve_app.errors import ConfigError

__all__ = ["free_ports", "require_free"]

_HIGHEST_PORT = 65535
# Systems give ports from 32768 on to connections that go out. One of those could take a port between
# the moment it was found free and the moment its server starts, or starts again.
_FREE_PORTS = range(20_000, 30_000)


def require_free(host: str, port: int) -> None:
    """Make sure that something may listen on the address.

    Raises:
        ConfigError: it can't be bound; the sentence names who holds it if that can be seen.
    """
    if not 0 < port <= _HIGHEST_PORT:
        msg = f"{port} is not a port; take one between 1 and {_HIGHEST_PORT}."
        raise ConfigError(msg)
    with socket.socket() as probe:
        # As servers do it: a connection that lingers in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                msg = (
                    f"Port {port} is busy: {_holder(port)}. End it, or choose another with --port."
                )
            elif error.errno == errno.EACCES:
                msg = f"Port {port} is reserved for root; choose one above 1023 with --port."
            else:
                msg = f"Can't listen on {host}:{port}: {error.strerror}."
            raise ConfigError(msg) from None


def free_ports(count: int) -> list[int]:
    """Return different ports of the loopback address that were free a moment ago.

    Raises:
        ConfigError: hardly any port is free.
    """
    found: list[int] = []
    for port in random.sample(_FREE_PORTS, len(_FREE_PORTS)):
        if len(found) == count:
            break
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    if len(found) < count:
        msg = (
            f"Fewer than {count} ports from {_FREE_PORTS[0]} to {_FREE_PORTS[-1]} are free; "
            "end something that listens there."
        )
        raise ConfigError(msg)
    return found


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another program listens there"  # macOS shows this to root only
    for connection in connections:
        here = connection.laddr
        if connection.status != psutil.CONN_LISTEN or not here or here[1] != port:
            continue
        if connection.pid is None:
            return "a program of another user listens there"
        try:
            return (
                f"{psutil.Process(connection.pid).name()} (process {connection.pid}) listens there"
            )
        except psutil.NoSuchProcess:
            break
    return "another program listens there"
