"""HTTP with a body that arrives bit by bit, over the standard library.

Locust has gevent stand in for the standard library's sockets, so what blocks here lets other users
go on. Its own client reads a stream in pieces of fixed size, and a token would wait for the next ones.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from load.dialects import refusal_kind
from load.http_client import Address, RequestFailed

__all__ = ["Answer", "Connection"]

_PIECE = 65536


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status.
        headers: by lower-case name.
        body: the body, if no sink took it.
        whole: whether it was read to its end.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True

    @property
    def refusal(self) -> str:
        """What to count a refusal by: its status, and its code if it has one."""
        return refusal_kind(self.status, self.body)

    @property
    def retry_after_s(self) -> float:
        """Seconds after which the server wants to be asked again; 0 if it says nothing."""
        try:
            return max(float(self.headers.get("retry-after", "0")), 0.0)
        except ValueError:
            return 0.0


class Connection:
    """One connection, opened when it is needed.

    Args:
        address: the server's.
        headers: sent with every request.
        timeout_s: seconds of silence after which a request has failed.
    """

    def __init__(self, address: Address, headers: Mapping[str, str], *, timeout_s: float) -> None:
        kind = http.client.HTTPSConnection if address.tls else http.client.HTTPConnection
        self._connection = kind(address.host, address.port, timeout=timeout_s)
        self._path = address.path
        self._headers = {"content-type": "application/json", **headers}

    def close(self) -> None:
        """Hang up; the next request opens a new connection."""
        self._connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: object | None = None,
        *,
        sink: Callable[[bytes], bool] | None = None,
    ) -> Answer:
        """Send a request and read its response.

        Args:
            method: like "POST".
            path: what follows the address's own.
            body: what is sent as JSON; None sends nothing.
            sink: takes the pieces of the body as they arrive, if the status is 200, and returns
                whether it wants more; where it doesn't, the connection is closed.

        Raises:
            RequestFailed: the server can't be reached ("connect"), or the connection ended before
                the response ("cut"), or nothing came for too long ("timeout").
        """
        content = None if body is None else orjson.dumps(body)
        try:
            self._connection.request(method, self._path + path, content, self._headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            msg = f"The server can't be reached ({error})."
            raise RequestFailed("connect", msg) from error
        try:
            return self._read(self._connection.getresponse(), sink)
        except TimeoutError as error:
            self.close()
            msg = "Nothing came for too long."
            raise RequestFailed("timeout", msg) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            msg = f"The connection ended before the response did ({error})."
            raise RequestFailed("cut", msg) from error

    def _read(
        self, response: http.client.HTTPResponse, sink: Callable[[bytes], bool] | None
    ) -> Answer:
        headers = {name.lower(): value for name, value in response.getheaders()}
        if sink is None or response.status != 200:
            return Answer(response.status, headers, response.read())
        while piece := response.read1(_PIECE):
            if not sink(piece):
                self.close()
                return Answer(response.status, headers, b"", whole=False)
        return Answer(response.status, headers, b"")
