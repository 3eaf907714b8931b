"""An HTTP/1.1 client that reads streamed bodies as cheaply as Python can.

It shares the machine with the server that it measures, so each event must cost it little: bytes go
from the socket through a parser in C to a callback, and no task is woken in between.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

from serve_app.errors import ConfigError

__all__ = ["Address", "HttpClient", "RequestFailed", "Response", "Sink"]

Sink = Callable[[bytes], None]


class RequestFailed(Exception):
    """A request came to no whole response.

    Attributes:
        kind: why, in a word or two, to count it by.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        host: name or address.
        port: its port.
        tls: whether to speak TLS.
        path: what stands before every path, without a slash at its end.
    """

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def of(cls, url: str) -> Self:
        """Read a base URL.

        Raises:
            ConfigError: it is none.
        """
        msg = f"{url!r} is no address; give one like http://127.0.0.1:8000/v1."
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(msg) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(msg)
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """Host and port, as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(slots=True)
class Response:
    """A response; the body is empty where a sink took it.

    Attributes:
        status: HTTP status; 0 until it is known.
        headers: by lower-case name.
        body: what came, if no sink took it.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection says where the body ends."""
        return self.status > 0 and self.headers.keys().isdisjoint(
            ("content-length", "transfer-encoding")
        )


class HttpClient:
    """Sends one request after the other, over one connection as long as the server keeps it.

    Args:
        address: the server's.
        headers: sent with every request.
    """

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        self._address = address
        fixed = {"host": address.authority, "content-type": "application/json", **headers}
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self._connection: _Connection | None = None

    async def request(
        self, method: str, path: str, body: bytes = b"", *, sink: Sink | None = None
    ) -> Response:
        """Send a request and wait for the end of its response.

        Args:
            method: like "POST".
            path: what follows the address's own.
            body: JSON, or nothing.
            sink: takes the pieces of the body as they arrive, if the status is 200; it must not
                raise.

        Raises:
            RequestFailed: the server can't be reached ("connect"), the connection ended before the
                response ("cut"), or what came is no HTTP ("malformed").
        """
        head = (
            f"{method} {self._address.path}{path} HTTP/1.1\r\n{self._fixed}"
            f"content-length: {len(body)}\r\n\r\n"
        )
        request = head.encode("latin-1") + body
        if self._connection is not None and self._connection.usable:
            try:
                return await self._exchange(self._connection, request, sink)
            except _NoResponse:
                pass  # the server had closed it before, and the news crossed the request
        self._connection = await self._connect()
        return await self._exchange(self._connection, request, sink)

    async def _exchange(
        self, connection: _Connection, request: bytes, sink: Sink | None
    ) -> Response:
        try:
            return await connection.exchange(request, sink)
        except BaseException:
            # What may still come belongs to this request and not to the next one.
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next request would open another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _connect(self) -> _Connection:
        address = self._address
        context = ssl.create_default_context() if address.tls else None
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, address.host, address.port, ssl=context
            )
        except OSError as error:
            msg = f"{address.authority} can't be reached ({error})."
            raise RequestFailed("connect", msg) from error
        return connection


class _NoResponse(RequestFailed):
    """A connection ended without a byte of the response."""


class _Connection(asyncio.Protocol):
    """One socket, with asyncio's callbacks on one side and the parser's on the other."""

    def __init__(self) -> None:
        self._response = Response()
        self._sink: Sink | None = None
        self._done: asyncio.Future[Response] | None = None
        self._silent = True

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return not self._transport.is_closing()

    async def exchange(self, request: bytes, sink: Sink | None) -> Response:
        self._parser = httptools.HttpResponseParser(self)
        self._response = Response()
        self._sink = sink
        self._silent = True
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            self.close()  # nobody has asked for anything
            return
        self._silent = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail("malformed", f"What came is no HTTP ({error}).")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self._response.ends_with_connection:
            self._finish()
        else:
            failure = _NoResponse if self._silent else RequestFailed
            self._fail("cut", f"The connection ended before the response did ({error}).", failure)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._response.status = self._parser.get_status_code()
        if self._response.status != 200:
            self._sink = None

    def on_body(self, body: bytes) -> None:
        if self._sink is None:
            self._response.body += body
        else:
            self._sink(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(self._response)

    def _fail(self, kind: str, message: str, failure: type[RequestFailed] = RequestFailed) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(failure(kind, message))
