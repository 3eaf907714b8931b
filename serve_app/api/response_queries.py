"""What is asked of stored responses: a stream from some event on, pages of input, feedback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from serve_app.api.body import WireModel, validated
from serve_app.api.items import item_object
from serve_app.errors import InvalidRequest
from serve_app.messages.dialogue import Item

__all__ = [
    "FeedbackRequest",
    "RetrieveQuery",
    "deleted_response",
    "feedback_object",
    "input_page",
    "single_values",
]

MAX_COMMENT = 8192


class RetrieveQuery(WireModel):
    """Query of GET /v1/responses/{id}."""

    stream: bool = False
    starting_after: int | None = Field(None, ge=0, le=2**31)
    include: str | None = Field(None, pattern=r"^message\.output_text\.logprobs$")
    include_obfuscation: Literal[False] | None = None

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]], last_event_id: str | None) -> RetrieveQuery:
        """Parse the query string's pairs and the header Last-Event-ID, which goes before them.

        Raises:
            UnsupportedParameter: naming a parameter that is unknown.
            InvalidRequest: naming one that is wrong or comes twice.
        """
        given: dict[str, object] = {}
        for name, text in single_values(pairs):
            given[name.removesuffix("[]").removesuffix("[0]")] = _typed(text)
        if last_event_id is not None and given.get("stream") is True:
            given["starting_after"] = _typed(last_event_id)
        query = validated(given, cls)
        if query.starting_after is not None and not query.stream:
            msg = "'starting_after' is for streams: send stream=true with it, or leave it out."
            raise InvalidRequest(msg, param="starting_after", code="invalid_value")
        return query


class FeedbackRequest(WireModel):
    """Body of POST /v1/responses/{id}/feedback."""

    rating: Literal["up", "down"]
    comment: str | None = Field(None, max_length=MAX_COMMENT)


def single_values(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return a query's pairs.

    Raises:
        InvalidRequest: a name comes twice.
    """
    taken = list(pairs)
    names = [name for name, _ in taken]
    for name in names:
        if names.count(name) > 1:
            msg = f"'{name[:64]}' stands twice in the query: send it once."
            raise InvalidRequest(msg, param=name[:64], code="invalid_value")
    return taken


def input_page(
    items: Sequence[Item], *, after: str | None, limit: int, order: Literal["asc", "desc"]
) -> dict[str, Any]:
    """Return a page of what a response was made from.

    Args:
        items: all of it, oldest first.
        after: id of the item before the page; None starts at the beginning.
        limit: most items of the page.
        order: oldest first ("asc") or newest first.

    Raises:
        InvalidRequest: there is no item `after`.
    """
    ordered = list(items if order == "asc" else reversed(items))
    first = 0
    if after is not None:
        ids = [item.id for item in ordered]
        if after not in ids:
            msg = f"There is no item {after!r} in the input; page on from one it has."
            raise InvalidRequest(msg, param="after")
        first = ids.index(after) + 1
    page = ordered[first : first + limit]
    ids = [item.id for item in page] or [""]
    return {
        "object": "list",
        "data": [item_object(item) for item in page],
        "first_id": ids[0],
        "last_id": ids[-1],
        "has_more": first + limit < len(ordered),
    }


def deleted_response(response: str) -> dict[str, Any]:
    """Return what DELETE answers."""
    return {"id": response, "object": "response", "deleted": True}


def feedback_object(response: str, said: FeedbackRequest, created: int) -> dict[str, Any]:
    """Return what was said about a response."""
    return {
        "object": "response.feedback",
        "response_id": response,
        "rating": said.rating,
        "comment": said.comment,
        "created_at": created,
    }


def _typed(text: str) -> object:
    if text in {"true", "false"}:
        return text == "true"
    return int(text) if len(text) <= 9 and text.isascii() and text.isdigit() else text
