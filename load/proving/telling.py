"""What one reader was told of a response, over as many connections as it took."""

from __future__ import annotations

from typing import Any

import orjson

from load.proving.history import History
from serve_app.api.sse import split

__all__ = ["LAST_EVENTS", "Telling", "body_of"]

LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})


def body_of(event: bytes) -> dict[str, Any]:
    """Return what an encoded event says."""
    body: dict[str, Any] = orjson.loads(event[event.index(b"data: ") + 6 :])
    return body


class Telling:
    """Events as they came.

    Args:
        history: takes note of what must not be.
        whose: names the turn in notes.

    Attributes:
        events: the encoded events by their numbers, the last one left out.
        last: the last event, once it has come.
        response: id of the response, once it is known.
        stored: whether the response is kept, likewise.
        error: code of the error that ended a connection and not the response, or None.
    """

    def __init__(self, history: History, whose: str) -> None:
        self._history = history
        self._whose = whose
        self._left = b""
        self.events: dict[int, bytes] = {}
        self.last: bytes | None = None
        self.response: str | None = None
        self.stored = False
        self.error: str | None = None

    @property
    def next_number(self) -> int:
        """Number of the event that is to come."""
        return max(self.events, default=-1) + 1

    @property
    def end(self) -> dict[str, Any] | None:
        """The response as the last event tells it."""
        if self.last is None:
            return None
        response: dict[str, Any] = body_of(self.last)["response"]
        return response

    def connect(self) -> None:
        """Begin to read from another connection."""
        self._left, self.error = b"", None

    def take(self, piece: bytes) -> None:
        """Read on."""
        events = split(self._left + piece)
        self._left = (self._left + piece)[sum(len(event) for event in events) :]
        for event in events:
            self._take(event)

    def closed(self) -> None:
        """Take note that a connection ended by itself, and not because something died."""
        self._history.check(
            "every stream has one last event",
            (self.last is not None or self.error is not None) and not self._left,
            f"{self._whose}: a stream ended behind event {self.next_number - 1} without a last one",
        )

    def _take(self, event: bytes) -> None:
        body = body_of(event)
        kind, number = body["type"], body["sequence_number"]
        self._history.check(
            "every stream has one last event",
            self.last is None and self.error is None,
            f"{self._whose}: {kind} {number} came behind the last event",
        )
        if kind == "error":
            self.error = body["code"]
            return
        if self.response is None and "response" in body:
            self.response, self.stored = body["response"]["id"], body["response"]["store"]
        if kind in LAST_EVENTS:
            self.last = event
            # Whoever heard more from a replica that died than its journal did is told the end too.
            early = body["response"]["status"] == "failed" and number < self.next_number
        else:
            early = False
        self._history.check(
            "every resumed stream equals the original",
            early or number == self.next_number,
            f"{self._whose}: event {number} came where {self.next_number} was to come",
        )
        if kind not in LAST_EVENTS:
            self.events[number] = event

    def compare(self, whole: Telling) -> str | None:
        """Compare with all events of the response as they are told now.

        Returns:
            What is different, or None.
        """
        end, other = self.end, whole.end
        if end is None or other is None:
            return None if other is not None else "it has no last event any more"
        failed = other["status"] == "failed"
        if failed:
            # How much of it was said depends on who looked when it was given up.
            if end["status"] != "failed":
                return f"it ended as {end['status']}, and now as failed"
        elif self.last != whole.last and not _unknown(end):
            return f"its last event was {self.last!r} and is {whole.last!r}"
        for number, event in self.events.items():
            if number not in whole.events:
                if not failed and not _unknown(end):
                    return f"event {number} is missing"
            elif whole.events[number] != event:
                return f"event {number} was {event!r} and is {whole.events[number]!r}"
        return None


def _unknown(end: dict[str, Any]) -> bool:
    """Say whether a client was told that it may have been stored."""
    return bool(end["status"] == "failed" and end["error"]["type"] == "commit_unknown")
