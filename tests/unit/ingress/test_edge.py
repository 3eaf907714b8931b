"""The edge on its own: what it reads, what it lets pass, and when it answers itself."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress.edge import DRAINED_BODIES, EdgeMiddleware, NoReplicaMiddleware
from serve_app.settings import IngressSettings

LIMIT = 100


class Application:
    """Reads its request to the end, then waits for what the client does next."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.afterwards: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        self.bodies.append(message["body"])
        assert not message["more_body"]
        self.afterwards.append(await receive())


class Connection:
    """A client that sends the given messages and then leaves."""

    def __init__(self, *bodies: bytes) -> None:
        self.to_come: list[Message] = [
            {"type": "http.request", "body": body, "more_body": number + 1 < len(bodies)}
            for number, body in enumerate(bodies)
        ]
        self.answer: list[Message] = []
        self.unread_at_the_end: int | None = None

    async def receive(self) -> Message:
        return self.to_come.pop(0) if self.to_come else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.answer.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.unread_at_the_end = len(self.to_come)


async def pass_through(connection: Connection, *headers: tuple[bytes, bytes]) -> Application:
    application = Application()
    edge = EdgeMiddleware(application, IngressSettings(max_body_bytes=LIMIT))
    scope: dict[str, Any] = {"type": "http", "headers": list(headers)}
    await edge(scope, connection.receive, connection.send)
    return application


async def test_a_body_in_pieces_arrives_as_one_and_then_the_client() -> None:
    connection = Connection(b"a" * 60, b"b" * 40, b"")
    application = await pass_through(connection)
    assert application.bodies == [b"a" * 60 + b"b" * 40]
    assert application.afterwards == [{"type": "http.disconnect"}]
    assert connection.answer == []


async def test_a_client_that_leaves_halfway_reaches_nobody() -> None:
    connection = Connection(b"a" * 60, b"b" * 40, b"")
    del connection.to_come[2:]
    application = await pass_through(connection)
    assert (application.bodies, connection.answer) == ([], [])


async def test_a_refused_body_is_read_so_that_the_answer_arrives() -> None:
    for headers in ((), ((b"content-length", b"600"),)):
        connection = Connection(*[b"x" * 60] * 10)
        application = await pass_through(connection, *headers)
        assert application.bodies == []
        assert connection.answer[0]["status"] == 413
        assert (b"connection", b"close") in connection.answer[0]["headers"]
        assert connection.unread_at_the_end == 0


async def test_a_body_without_end_is_not_read_for_ever() -> None:
    connection = Connection(*[b"x" * LIMIT] * (DRAINED_BODIES * 2))
    await pass_through(connection)
    assert connection.answer[0]["status"] == 413
    assert connection.unread_at_the_end is not None
    assert connection.unread_at_the_end > DRAINED_BODIES / 2


async def _plain_404(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"Path not found"})


async def _json_404(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


async def _statuses(app: ASGIApp, path: str) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    await NoReplicaMiddleware(app)({"type": "http", "path": path}, receive, send)
    return sent


async def test_serves_own_404_becomes_a_503_that_says_when_to_come_back() -> None:
    start, body = await _statuses(_plain_404, "/v1/models")
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert orjson.loads(body["body"])["error"]["code"] == "overloaded"


@pytest.mark.parametrize(("app", "path"), [(_json_404, "/v1/models/x"), (_plain_404, "/-/routes")])
async def test_other_404s_stay_what_they_are(app: ASGIApp, path: str) -> None:
    start, _ = await _statuses(app, path)
    assert start["status"] == 404
