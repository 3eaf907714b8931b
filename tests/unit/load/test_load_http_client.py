from __future__ import annotations

import asyncio

import pytest
from sse_server import END, HEAD, chunk, refusal, serving

from load.http_client import Address, HttpClient, RequestFailed
from serve_app.errors import ConfigError

CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"


def client(url: str) -> HttpClient:
    return HttpClient(Address.of(url), {"authorization": "Bearer secret"})


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", "/v1"),
        ("http://localhost/v1/", "localhost:80", "/v1"),
        ("https://example.org", "example.org:443", ""),
        ("http://[::1]:8000/v1", "[::1]:8000", "/v1"),
    ],
)
def test_an_address_is_read_from_a_url(url: str, authority: str, path: str) -> None:
    address = Address.of(url)
    assert (address.authority, address.path) == (authority, path)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/", "http://", "http://host:port"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        Address.of(url)


async def test_a_chunked_body_arrives_wherever_it_is_cut() -> None:
    whole = HEAD + chunk(b"one ") + chunk(b"two") + END
    async with serving(lambda _: [whole[at : at + 1] for at in range(len(whole))]) as server:
        pieces: list[bytes] = []
        response = await client(server.url).request("POST", "/x", b"{}", sink=pieces.append)
    assert response.status == 200
    assert b"".join(pieces) == b"one two"
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/x", {})
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"


async def test_a_refusal_keeps_its_body_from_the_sink() -> None:
    async with serving(lambda _: [refusal(503, {"error": "busy"})]) as server:
        pieces: list[bytes] = []
        response = await client(server.url).request("POST", "/x", sink=pieces.append)
    assert response.status == 503
    assert response.body == b'{"error": "busy"}'
    assert not pieces


async def test_the_connection_is_kept() -> None:
    async with serving(lambda _: [HEAD, chunk(b"x"), END]) as server:
        asking = client(server.url)
        for _ in range(3):
            await asking.request("GET", "/x")
        assert server.connections == 1
        asking.close()


async def test_a_server_that_closes_gets_a_new_connection() -> None:
    async with serving(lambda _: [CLOSING, b"all of it", None]) as server:
        asking = client(server.url)
        for _ in range(2):
            response = await asking.request("GET", "/x")
            assert response.body == b"all of it"
        assert server.connections == 2


async def test_a_connection_that_was_closed_while_idle_costs_no_request() -> None:
    # The server hangs up when the second request comes, as if it had done so just before.
    answers = iter([[HEAD, chunk(b"one"), END], [None], [HEAD, chunk(b"two"), END], [None], [None]])
    async with serving(lambda _: next(answers)) as server:
        asking = client(server.url)
        assert (await asking.request("GET", "/x")).body == b"one"
        assert (await asking.request("GET", "/x")).body == b"two"
        assert server.connections == 2
        with pytest.raises(RequestFailed) as caught:
            await asking.request("GET", "/x")
    assert caught.value.kind == "cut"


@pytest.mark.parametrize("pieces", [[None], [HEAD, None], [HEAD, chunk(b"half"), None]])
async def test_a_response_that_breaks_off_is_cut(pieces: list[bytes | None]) -> None:
    async with serving(lambda _: pieces) as server:
        with pytest.raises(RequestFailed) as caught:
            await client(server.url).request("GET", "/x")
    assert caught.value.kind == "cut"


async def test_what_is_no_http_is_malformed() -> None:
    async with serving(lambda _: [b"SSH-2.0-OpenSSH\r\n"]) as server:
        with pytest.raises(RequestFailed) as caught:
            await client(server.url).request("GET", "/x")
    assert caught.value.kind == "malformed"


async def test_a_server_that_is_not_there_is_named() -> None:
    async with serving(lambda _: []) as server:
        url = server.url
    with pytest.raises(RequestFailed, match="can't be reached") as caught:
        await client(url).request("GET", "/x")
    assert caught.value.kind == "connect"


async def test_a_request_that_was_given_up_leaves_nothing_for_the_next_one() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await go_on.wait()

    late = [HEAD, chunk(b"late"), wait, chunk(b" and wrong"), END]
    answers = iter([late, [HEAD, chunk(b"right"), END]])
    async with serving(lambda _: next(answers)) as server:
        asking = client(server.url)
        given_up = asyncio.create_task(asking.request("GET", "/x"))
        await begun.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        go_on.set()
        assert (await asking.request("GET", "/x")).body == b"right"
