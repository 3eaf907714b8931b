"""The HTTP side of `parley chat`: conversations and streamed responses, in OpenAI's wire format."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from serve_app.api.account import read_account
from serve_app.errors import ConfigError, ModelNotFound, ParleyError, StateUnavailable

__all__ = ["ChatClient", "Delta", "Said", "Usage"]

_CONNECT_S = 5.0
_SILENCE_S = 600.0  # a queue in front of the model may be long
_PAGE = 100


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: plain text.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that the model has just said."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """The end of a reply.

    Attributes:
        input_tokens: tokens of the prompt.
        cached_tokens: how many of them were in a cache.
        output_tokens: tokens of the reply.
        complete: False when the reply was cut by its token limit.
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    complete: bool


class ChatClient:
    """Talks to one server.

    Args:
        url: its root, such as http://127.0.0.1:8000; the /v1 that other clients want may follow.
        api_key: sent as a bearer token, if there is one.

    Raises:
        ConfigError: the URL or the key can't be one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = _checked_url(url)
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {_checked_key(api_key)}"
        try:
            self._client = httpx.Client(
                base_url=self._url,
                headers=headers,
                timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
                # A proxy for the web has no business on loopback; other servers may be behind one.
                trust_env=not _on_loopback(self._url),
            )
        except (ImportError, ValueError) as error:
            msg = f"The environment's proxy can't be used: {error} Mend or unset it (ALL_PROXY, …)."
            raise ConfigError(msg) from None

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def model(self, wanted: str | None = None) -> str:
        """Return the name of a model that is served.

        Args:
            wanted: the name; None takes the first model.

        Raises:
            ModelNotFound: there is none of that name.
            ParleyError: the server can't be reached or refuses, here as in every method below.
        """
        models = self._call("GET", "/v1/models")
        with self._understood():
            names = [str(model["id"]) for model in models["data"]]
        if not names:
            msg = f"{self._url} serves no model."
            raise ParleyError(msg)
        if wanted is not None and wanted not in names:
            msg = f"{self._url} serves no model {wanted}; it serves {', '.join(names)}."
            raise ModelNotFound(msg)
        return wanted or names[0]

    def create_conversation(self, items: Sequence[Said]) -> str:
        """Create a stored conversation that begins with these items and return its id."""
        body = {"items": [_message(item) for item in items]}
        created = self._call("POST", "/v1/conversations", content=_json(body))
        with self._understood():
            return str(created["id"])

    def items(self, conversation: str) -> list[Said]:
        """Return everything that was said in a conversation, oldest first."""
        said: list[Said] = []
        after: dict[str, str] = {}
        while True:
            page = self._call(
                "GET",
                f"/v1/conversations/{conversation}/items",
                params={"order": "asc", "limit": str(_PAGE), **after},
            )
            with self._understood():
                said.extend(
                    Said(item["role"], "".join(part.get("text", "") for part in item["content"]))
                    for item in page["data"]
                )
                if not page["has_more"]:
                    return said
                after = {"after": page["last_id"]}

    def account(self, request: str) -> dict[str, Any]:
        """Return where the time of a request went, by its reply's id or its `x-request-id`."""
        found = self._call("GET", f"/v1/requests/{quote(request, safe='')}/account")
        with self._understood():
            read_account(found)
        return found

    def respond(
        self, model: str, conversation: str, items: Sequence[Said], parameters: Mapping[str, object]
    ) -> Iterator[Delta | Usage]:
        """Say something in a conversation and stream the reply; closing the iterator cancels it.

        Args:
            model: the model's name.
            conversation: id of the conversation.
            items: what is said; the last item is the one to answer.
            parameters: further fields of the request, such as temperature.

        Yields:
            Text as it comes, and its usage at the end.
        """
        body = {
            **parameters,
            "model": model,
            "conversation": conversation,
            "input": [_message(item) for item in items],
            "stream": True,
            # Whoever interrupts a reply means it; the turn is part of the conversation all the same.
            "store": False,
        }
        try:
            with self._client.stream("POST", "/v1/responses", content=_json(body)) as response:
                if response.is_error:
                    response.read()
                    raise self._refusal(response)
                yield from self._events(response)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _events(self, response: httpx.Response) -> Iterator[Delta | Usage]:
        for line in _lines(response.iter_bytes()):
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                continue
            with self._understood():
                heard = _heard(json.loads(data))
            if heard is not None:
                yield heard
            if isinstance(heard, Usage):
                return
        msg = "The connection ended in the middle of the reply."
        raise ParleyError(msg)

    def _call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **content)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise self._refusal(response)
        with self._understood():
            return dict(response.json())

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Tell of an answer that has another shape than it must have."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            msg = f"What {self._url} answers is not OpenAI's API; name Parley's address with --url."
            raise ParleyError(msg) from None

    def _refusal(self, response: httpx.Response) -> ParleyError:
        try:
            error = response.json()["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, LookupError, TypeError, AttributeError):
            message, code = f"{self._url} answered {response.status_code}.", None
        if (patience := response.headers.get("retry-after", "")).isdigit():
            message += f" The server asks for {patience} s before another try."
        if code == StateUnavailable.code:
            return StateUnavailable(message)
        return ParleyError(message, code=code)

    def _unreachable(self, error: httpx.HTTPError) -> ParleyError:
        match error:
            case httpx.ConnectError() | httpx.ConnectTimeout():
                remedy = "`parley up` starts it" if _on_loopback(self._url) else "check the address"
                return ParleyError(f"Nothing answers at {self._url}; {remedy}.")
            case httpx.TimeoutException():
                return ParleyError(f"{self._url} said nothing for {_SILENCE_S:.0f} s.")
            case _:
                reason = str(error) or type(error).__name__
                return ParleyError(f"The connection to {self._url} broke ({reason}).")


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        well = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        well = False
    if not well or " " in url or not url.isprintable():
        msg = f"`{url}` is no address of a server; --url takes one like http://127.0.0.1:8000."
        raise ConfigError(msg)
    return url.rstrip("/").removesuffix("/v1")


def _on_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_key(api_key: str) -> str:
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
        msg = "The API key has characters that no key has; `parley key create NAME` makes one."
        raise ConfigError(msg)
    return api_key


def _json(body: dict[str, Any]) -> bytes:
    # In ASCII, so that half a surrogate pair is for the server to refuse.
    return json.dumps(body).encode("ascii")


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Split a stream at line feeds only: JSON may hold whatever else separates lines in Unicode."""
    rest = bytearray()
    for piece in pieces:
        *whole, last = piece.split(b"\n")
        for line in whole:
            yield bytes(rest) + line
            rest.clear()
        rest += last
    yield bytes(rest)


def _heard(event: dict[str, Any]) -> Delta | Usage | None:
    match event["type"]:
        case "response.output_text.delta":
            return Delta(str(event["delta"]))
        case "response.completed" | "response.incomplete":
            return _usage(event["response"])
        case "response.failed":
            error = event["response"].get("error") or {}
        case "error":
            error = event.get("error") or event
        case _:
            return None  # it says nothing to somebody who reads
    raise ParleyError(error.get("message", "The reply failed."))


def _message(item: Said) -> dict[str, str]:
    return {"type": "message", "role": item.role, "content": item.content}


def _usage(response: dict[str, Any]) -> Usage:
    usage = response.get("usage") or {}
    details = usage.get("input_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("input_tokens", 0),
        cached_tokens=details.get("cached_tokens", 0),
        output_tokens=usage.get("output_tokens", 0),
        complete=response.get("status") == "completed",
    )
