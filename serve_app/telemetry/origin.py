"""What a piece of work is done for: the ids that its lines of log carry, and its place in a trace.

An `Origin` belongs to a request. Within a process it is in the context, from one process to another it
travels in the messages.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

__all__ = ["Origin", "current", "detached", "named", "origin_of", "within"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What work is done for.

    Attributes:
        request: id of the reply, such as `resp_…`; of the HTTP request where there is no reply, or none
            yet.
        http_request: id of the HTTP request, which its answer has in `x-request-id`.
        conversation: id of the conversation.
        tenant: whose request it is.
        traceparent: the span that the work is part of, as W3C's Trace Context writes it.
    """

    request: str | None = None
    http_request: str | None = None
    conversation: str | None = None
    tenant: str | None = None
    traceparent: str | None = None


_current: contextvars.ContextVar[Origin | None] = contextvars.ContextVar(
    "parley_origin", default=None
)


def current() -> Origin | None:
    """Return what is being worked for, None if nobody said."""
    return _current.get()


def named(
    *, request: str | None = None, conversation: str | None = None, tenant: str | None = None
) -> None:
    """Say more of what is being worked for, until the block that began it ends."""
    origin = _current.get() or Origin()
    _current.set(
        replace(
            origin,
            request=request or origin.request,
            conversation=conversation or origin.conversation,
            tenant=tenant or origin.tenant,
        )
    )


def origin_of(message: Any) -> Origin | None:
    """Return the origin that a message brings; one of an earlier version has no such field."""
    origin: Origin | None = getattr(message, "origin", None)
    return origin


def detached(origin: Origin | None) -> contextvars.Context:
    """Return a context that has nothing but an origin.

    Serve cancels what was called in the context of a request whose client has left. What goes on without
    its client runs in one of these.
    """
    context = contextvars.Context()
    if origin is not None:
        context.run(_current.set, origin)
    return context


class within:  # noqa: N801 - reads as a statement
    """A block that works for an origin; for whatever it was before, if that is None."""

    __slots__ = ("_origin", "_token")

    def __init__(self, origin: Origin | None) -> None:
        self._origin = origin
        self._token: contextvars.Token[Origin | None] | None = None

    def __enter__(self) -> None:
        if self._origin is not None:
            self._token = _current.set(self._origin)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
