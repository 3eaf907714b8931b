"""Replies as Locust's statistics.

Locust counts requests and milliseconds. A reply is one of its requests, whose length is tokens
instead of bytes; three further rows say what a stream is judged by. They are written past Locust's
total, which therefore counts replies and nothing else.
"""

from __future__ import annotations

from locust.env import Environment

from load.measurements import Reply

__all__ = ["CANCEL", "INTER_TOKEN", "REPLY", "TOKENS", "TTFT", "ReplyFailed", "record"]

REPLY = "reply"
"""Milliseconds from the question to the end of its reply; the length is tokens."""
TTFT = "TTFT"
"""Milliseconds from the question to the first of its reply."""
INTER_TOKEN = "inter-token"  # noqa: S105 - no password
"""Milliseconds from one arrival of a reply to the next."""
TOKENS = "tokens"
"""Tokens of a reply, where Locust says milliseconds."""
CANCEL = "cancel"
"""Milliseconds from the question to hanging up; no failure."""


class ReplyFailed(Exception):
    """A reply didn't come whole; the message is what it is counted by."""


def record(
    environment: Environment, name: str, reply: Reply, *, seconds: float, cancelled: bool
) -> None:
    """Count one reply.

    Args:
        environment: Locust's.
        name: of the rows, such as "chat talker".
        reply: the reply.
        seconds: from the question to its end, or to hanging up.
        cancelled: whether it was hung up on.
    """
    stats = environment.stats
    tokens = reply.arrivals if reply.tokens is None else reply.tokens.completion
    if reply.first_at is not None:
        stats.get(name, TTFT).log(round((reply.first_at - reply.sent_at) * 1e3), 0)
    gaps = stats.get(name, INTER_TOKEN) if reply.gaps else None
    for gap in reply.gaps:
        assert gaps is not None  # noqa: S101 - there are gaps
        gaps.log(round(gap * 1e3), 0)
    if cancelled and reply.error is None:
        stats.get(name, CANCEL).log(round(seconds * 1e3), tokens)
        return
    if reply.error is None:
        stats.get(name, TOKENS).log(tokens, tokens)
    environment.events.request.fire(
        request_type=REPLY,
        name=name,
        response_time=seconds * 1e3,
        response_length=tokens,
        exception=None if reply.error is None else ReplyFailed(reply.error),
        context={},
    )
