"""Errors as clients see them: OpenAI's envelope, its headers, and its event inside a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import orjson

from serve_app.api.sse import sse_event
from serve_app.errors import (
    ClientGone,
    CommitUnknown,
    DeadlineExceeded,
    GeneratorLost,
    Overloaded,
    ParleyError,
)
from serve_app.messages.generation import Finished, FinishReason

__all__ = [
    "as_parley_error",
    "deadline_exceeded",
    "envelope",
    "error_event",
    "error_headers",
    "failure",
    "no_replica",
    "raw_response",
]


def as_parley_error(error: BaseException) -> ParleyError:
    """Return what may be told about any exception.

    An error from another deployment arrives inside a wrapper whose `cause` is the original.
    Whatever isn't a `ParleyError` becomes an `internal_error` without details: they belong in the
    log, where the caller writes them.
    """
    cause = getattr(error, "cause", None)
    for candidate in (cause, error):
        if isinstance(candidate, ParleyError):
            return candidate
    return ParleyError("The server failed while working on this request. Try it again.")


def envelope(error: ParleyError) -> dict[str, Any]:
    """Return the body of an error response: `{"error": {message, type, param, code}}`."""
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def error_headers(error: ParleyError) -> dict[str, str]:
    """Return the headers that an error response needs besides its content type."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, CommitUnknown):
        headers["x-should-retry"] = "false"  # OpenAI's clients repeat every 5xx without it
    return headers


def no_replica() -> ParleyError:
    """Return what a client is told while no ingress replica can take its request."""
    return Overloaded(
        "No replica can take this request now: the service is starting or recovering. "
        "Try again shortly.",
        retry_after=1.0,
    )


def raw_response(error: ParleyError) -> bytes:
    """Return an error response as it goes through a connection, which it closes."""
    body = orjson.dumps(envelope(error))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-cache",
        "connection": "close",
        **error_headers(error),
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def deadline_exceeded() -> DeadlineExceeded:
    """Return what a client is told whose request ran out of time, wherever it was by then."""
    return DeadlineExceeded(
        "The request's time limit ran out before the reply was done: allow it more time "
        "or ask for fewer tokens."
    )


def error_event(error: ParleyError) -> bytes:
    """Return the event that ends a stream of (chat) completions which can't go on."""
    return sse_event(envelope(error))


def failure(finished: Finished) -> ParleyError | None:
    """Return the error that a stream ended with, or None if it ended with a reply."""
    match finished.reason:
        case FinishReason.STOP | FinishReason.LENGTH:
            return None
        case FinishReason.DEADLINE:
            return deadline_exceeded()
        case FinishReason.CANCELLED:
            return ClientGone("The request was cancelled before the reply was done.")
        case FinishReason.HANDED_BACK:
            return GeneratorLost(
                "The generator was stopped before the reply was done; send the request again.",
                retry_after=1.0,
            )
        case FinishReason.ERROR:
            code = finished.error_code or ParleyError.code
            kind = {known.code: known for known in _tree(ParleyError)}.get(code, ParleyError)
            return kind(
                finished.error_message or "The generator failed on this request. Try it again.",
                code=code,
            )


def _tree(kind: type[ParleyError]) -> Iterator[type[ParleyError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
