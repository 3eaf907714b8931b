"""A small process beside HAProxy, which puts a standby in its place when it dies.

Serve needs some seconds to miss its HAProxy, start another, and tell it about the application. Until
then nobody would listen. The keeper follows each HAProxy that is started; when the newest one dies and
no other is left that serves, it starts one itself, with the last configuration that knew an
application. Serve's own takes the standby's listeners over when it comes, and the standby ends with
its last stream. It all ends with Ray's node.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serve_app.cluster.haproxy_config import admin_socket, standby

__all__ = ["STANDBY", "Keeper", "Standby", "followed", "keeper_socket", "main"]

STANDBY = "standby.cfg"
"""Name of a standby's configuration."""

_ANSWER_S = 5.0
_READY_S = 3.0
_POLL_S = 0.01
_STANDBY_SOCKET = "standby.sock"
_NOBODY = "nobody"
_LONGEST_ANSWER = 256
# As long as standbys serve without Serve coming back, and as many as there may be in that time.
_LONGEST_S = 600.0
_MOST_TRIES = 5
_CREDENTIALS = struct.Struct("3i")  # SO_PEERCRED: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Standby:
    """An HAProxy that stands in for Serve's.

    Attributes:
        pid: its process.
        socket: where its listeners can be had.
    """

    pid: int
    socket: str


def keeper_socket(folder: Path) -> Path:
    """Return where the keeper of the HAProxy that works in a folder listens."""
    return folder / "keeper.sock"


def followed(path: Path, binary: str, routed: Path) -> Standby | None:
    """Have the keeper follow this process, which becomes HAProxy; start the keeper if there is none.

    Args:
        path: of the keeper's socket.
        binary: HAProxy.
        routed: the last configuration that knew an application.

    Returns:
        The standby that serves now, if any.
    """
    with suppress(OSError):
        return _asked(path)
    # Serve starts one HAProxy at a time, so nobody else is doing this.
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        node = _parent(os.getppid())
        subprocess.Popen(  # noqa: S603 - our own module
            [
                *(sys.executable, "-P", "-m", "serve_app.cluster.haproxy_keeper"),
                *(str(listener.fileno()), str(node), binary, str(routed)),
            ],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Out of reach of whoever ends the group of Serve's HAProxy.
            start_new_session=True,
        )
    with suppress(OSError):
        return _asked(path)
    return None  # HAProxy is more important than its keeper


def main() -> None:
    """Follow HAProxy: LISTENER's descriptor, the NODE's process id, BINARY, CONFIGURATION."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    keeper = Keeper(listener, int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    try:
        with suppress(TimeoutError):
            keeper.run()
    finally:
        keeper.end()


class Keeper:
    """Follows the HAProxy of one node.

    Args:
        listener: where launchers connect; whoever does is followed.
        node: process id of Ray's node manager; everything ends with it.
        binary: HAProxy.
        routed: the last configuration that knew an application; it need not exist.
    """

    def __init__(self, listener: socket.socket, node: int, binary: str, routed: Path) -> None:
        listener.settimeout(_ANSWER_S)  # whoever has started this connects at once, or is dead
        self._listener = listener
        self._binary = binary
        self._routed = routed
        self._socket = str(routed.with_name(_STANDBY_SOCKET))
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._node = _descriptor(node)
        if self._node is not None:
            self._poll.register(self._node, select.POLLIN)
        # Process ids by their descriptors, the newest last; standbys are among them.
        self._followed: dict[int, int] = {}
        self._standbys: dict[int, subprocess.Popen[bytes]] = {}
        self._until = 0.0
        self._tries = 0

    def run(self) -> None:
        """Follow until the node has ended, or nothing is left to follow.

        Raises:
            TimeoutError: nobody connects to be followed.
        """
        self._follow()
        while self._followed:
            for descriptor, _ in self._poll.poll(self._patience_ms()):
                if descriptor == self._node:
                    return
                if descriptor == self._listener.fileno():
                    self._follow()
                else:
                    self._forget(descriptor)
            if self._stands_in() and time.monotonic() >= self._until:
                return

    def end(self) -> None:
        """End what stands in."""
        for process in self._standbys.values():
            process.kill()
            process.wait()

    def _follow(self) -> None:
        """Follow whoever connects, and tell it who stands in for it."""
        connection, _ = self._listener.accept()
        with connection, suppress(OSError):
            got = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, user, _ = _CREDENTIALS.unpack(got)
            if user != os.getuid() or (descriptor := _descriptor(pid)) is None:
                return
            before = next(reversed(self._followed.values()), None)
            self._add(descriptor, pid)
            serves = before in self._standbys and _listens(self._socket)
            answer = f"{before} {self._socket}" if serves else _NOBODY
            connection.sendall(answer.encode())

    def _add(self, descriptor: int, pid: int) -> None:
        self._followed[descriptor] = pid
        self._poll.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> None:
        """Take note of a death, and fill the gap that it leaves."""
        newest = next(reversed(self._followed))
        pid = self._followed.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        if (process := self._standbys.pop(pid, None)) is not None:
            process.wait()
        else:
            self._until = time.monotonic() + _LONGEST_S
            self._tries = 0
        # One that is younger serves, or is about to; if it fails, it is the newest that has died.
        if descriptor == newest and not self._served():
            self._stand_in()

    def _served(self) -> bool:
        """Say whether an HAProxy accepts connections, be it Serve's or a standby."""
        if _listens(self._socket):
            return True
        with suppress(FileNotFoundError):
            admin = admin_socket(self._routed.read_text())
            return admin is not None and _listens(admin)
        return False

    def _stand_in(self) -> None:
        if not self._routed.exists() or self._tries >= _MOST_TRIES:
            return  # there is nothing to serve, or it can't be served
        self._tries += 1
        file = self._routed.with_name(STANDBY)
        file.write_text(standby(self._routed.read_text(), self._socket))
        with file.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - as Serve starts it
                [self._binary, "-db", "-f", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        descriptor = os.pidfd_open(process.pid)  # it is not waited for yet, so it is still there
        self._standbys[process.pid] = process
        self._add(descriptor, process.pid)
        ready_by = time.monotonic() + _READY_S
        while process.poll() is None and not _listens(self._socket):
            if time.monotonic() >= ready_by:
                process.kill()
                return
            time.sleep(_POLL_S)

    def _stands_in(self) -> bool:
        return next(reversed(self._followed.values()), None) in self._standbys

    def _patience_ms(self) -> float | None:
        return max(0.0, self._until - time.monotonic()) * 1000 if self._stands_in() else None


def _asked(path: Path) -> Standby | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(path))
        answer = connection.recv(_LONGEST_ANSWER).decode()
    if not answer:
        msg = "the keeper has ended"
        raise ConnectionError(msg)
    if answer == _NOBODY:
        return None
    pid, listeners = answer.split(" ", 1)
    return Standby(int(pid), listeners)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(path)
        except OSError:
            return False
        return True


def _descriptor(pid: int) -> int | None:
    """Return a descriptor that tells when the process ends; None if it has."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


if __name__ == "__main__":
    main()
