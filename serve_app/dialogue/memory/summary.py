"""What the model is asked when it summarises what left the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.messages.tokenization import Message
from serve_app.state.records import StoredItem

__all__ = ["summary_request"]

_TASK = (
    "You keep notes about a conversation. Write what matters of it for going on with it, in at most "
    "three short sentences: what the user wants, facts and names, what was agreed. Write only the notes."
)
_NAMES = {"user": "User", "assistant": "Assistant"}
_LONGEST_MESSAGE = 600


def summary_request(
    before: str | None, items: Sequence[StoredItem], *, without: int = 0
) -> tuple[Message, ...]:
    """Return the messages that ask for a summary.

    Args:
        before: the summary of what was said before the items, or None.
        items: what is new, oldest first.
        without: how many of the oldest items to leave out, since they have no room.
    """
    lines = [
        f"{_NAMES[item.role]}: {item.content[:_LONGEST_MESSAGE]}"
        for item in items[without:]
        if item.role in _NAMES
    ]
    if before:
        lines.insert(0, f"Notes so far: {before}")
    return (Message("system", _TASK), Message("user", "\n".join([*lines, "", "Notes:"])))
