"""Server-sent events, and how to encode thousands of nearly equal ones a second.

A stream's events differ in a few values only. `cut` encodes such an event once with holes where
those values go; what is left to do per event is to encode the values and join the pieces.
"""

from __future__ import annotations

from typing import Any

import orjson

__all__ = ["DONE", "HEADERS", "HOLE", "cut", "numbered", "split", "sse_event"]

DONE = b"data: [DONE]\n\n"
"""Ends a stream of chat completions or completions."""

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""What a response with events needs, so that nothing on its way holds them back."""

HOLE = "\x00"
"""Stands in a template where a value will go; no id and no model's name contains it."""

_HOLE_JSON = orjson.dumps(HOLE)


def sse_event(body: dict[str, Any], name: str | None = None) -> bytes:
    """Encode one event; `name` goes into its `event:` line."""
    data = b"data: " + orjson.dumps(body) + b"\n\n"
    return data if name is None else b"event: " + name.encode() + b"\n" + data


def numbered(event: bytes, number: bytes) -> bytes:
    """Give an encoded event an id, which a browser sends back as Last-Event-ID."""
    return b"id: " + number + b"\n" + event


def split(events: bytes) -> list[bytes]:
    """Return the single events of several encoded ones."""
    # A line break inside of an event would be one inside of a JSON string, where it is escaped.
    return [event + b"\n\n" for event in events.split(b"\n\n")[:-1]]


def cut(body: dict[str, Any], holes: int, name: str | None = None) -> list[bytes]:
    """Encode an event and cut it at its holes.

    Args:
        body: the event, with `HOLE` as the value wherever one goes.
        holes: how many there are.
        name: the event's name.

    Returns:
        `holes + 1` pieces; the values, encoded as JSON, go between them.

    Raises:
        ValueError: if the event has another number of holes.
    """
    pieces = sse_event(body, name).split(_HOLE_JSON)
    if len(pieces) != holes + 1:
        msg = f"An event with {len(pieces) - 1} holes in place of {holes}."
        raise ValueError(msg)
    return pieces
