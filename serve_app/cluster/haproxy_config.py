"""The configuration that Serve writes for HAProxy, amended where Serve has no setting.

Serve has HAProxy's statistics and metrics listen on every interface, without a password, has it answer
`500 Internal Server Error` while no replica is up and 404 while it knows no application, and gives
clients an hour for the head of a request. It also splices requests, which keeps HAProxy from noticing
that a client has left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

__all__ = ["Amendments", "admin_socket", "has_routes", "listeners", "standby"]

_LOOPBACK = "127.0.0.1"
_INDENT = "    "
_NOT_FOUND = re.compile(r"^( *http-request return status) 404 .*", re.MULTILINE)
_ADMIN_SOCKET = re.compile(r"^ *stats socket (\S+)", re.MULTILINE)
_LISTENER = re.compile(r"^ *(?:bind|stats socket) .*", re.MULTILINE)
_ROUTE = re.compile(r"^ *use_backend ", re.MULTILINE)

# What another replica may be asked as well, if the first one died before it said a word: nothing is
# kept of these, so nothing can be there twice.
_STATELESS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
_RETRIES = (
    "acl repeatable method GET HEAD",
    f"acl repeatable path {' '.join(_STATELESS)}",
    "http-request disable-l7-retry unless repeatable",
)
_REPEATED_ON = "conn-failure empty-response"

# Sections that a standby leaves to the HAProxy it stands in for, and lines.
_NOT_ON_STANDBY = ("frontend prometheus", "listen stats")
_STATE = re.compile(
    r"^ *(stats socket|server-state-|load-server-state-from-file).*\n", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Amendments:
    """What is different from what Serve writes.

    Attributes:
        head_ms: time that a client has for the head of a request, in milliseconds.
        on_loopback: ports that are to be reached from this machine alone.
    """

    head_ms: int
    on_loopback: Sequence[int] = ()

    def applied(self, config: str, refusal: str) -> str:
        """Return a configuration with them.

        Args:
            config: as Serve wrote it, or amended already, which changes nothing.
            refusal: file with the answer while no replica is up, or no application.
        """
        for port in self.on_loopback:
            config = _each_line(rf"( *bind) \*?:{port}", rf"\1 {_LOOPBACK}:{port}", config)
        config = _each_line(r"( *errorfile 50[234]) .*", rf"\1 {refusal}", config)
        config = _each_line(r" *option splice-request\n", "", config, whole=False)
        config = _each_line(r"( *retry-on) .*", rf"\1 {_REPEATED_ON}", config)
        config = _after(
            "defaults", [f"timeout http-request {self.head_ms}ms"], config, within="defaults"
        )
        config = _after(r" *bind .*", _RETRIES, config, within="frontend http_frontend")
        if not has_routes(config):
            config = _NOT_FOUND.sub(r"\1 503 default-errorfiles", config)
        return config


def has_routes(config: str) -> bool:
    """Say whether HAProxy would find an application with it."""
    return _ROUTE.search(config) is not None


def listeners(config: str) -> list[str]:
    """Return the lines that say where HAProxy listens."""
    return [line.strip() for line in _LISTENER.findall(config)]


def admin_socket(config: str) -> str | None:
    """Return the path of the socket through which Serve talks to HAProxy."""
    found = _ADMIN_SOCKET.search(config)
    return found[1] if found else None


def standby(config: str, socket: str) -> str:
    """Return the configuration of an HAProxy that stands in for the one with this configuration.

    Args:
        config: amended, with routes.
        socket: path of a socket from which its successor can take its listeners.
    """
    sections = [
        section for section in _sections(config) if section[0].rstrip() not in _NOT_ON_STANDBY
    ]
    config = _STATE.sub("", "".join(chain.from_iterable(sections)))
    line = f"stats socket {socket} mode 600 level operator expose-fd listeners"
    return _after("global", [line], config, within="global")


def _each_line(pattern: str, replacement: str, config: str, *, whole: bool = True) -> str:
    return re.sub(rf"^{pattern}{'$' if whole else ''}", replacement, config, flags=re.MULTILINE)


def _after(pattern: str, lines: Iterable[str], config: str, *, within: str) -> str:
    """Put lines behind the first one of a section that a pattern matches, if they aren't there."""
    added = [f"{_INDENT}{line}\n" for line in lines]
    amended = []
    for section in _sections(config):
        if section[0].rstrip() == within:
            place = next(
                (n for n, line in enumerate(section, 1) if re.fullmatch(pattern, line.rstrip())), 0
            )
            if place and section[place : place + len(added)] != added:
                section[place:place] = added
        amended += section
    return "".join(amended)


def _sections(config: str) -> Iterator[list[str]]:
    """Yield the lines of each section; each but the first begins at the margin."""
    section: list[str] = []
    for line in config.splitlines(keepends=True):
        if section and line.strip() and not line[0].isspace() and not line.startswith("#"):
            yield section
            section = []
        section.append(line)
    if section:
        yield section
