"""Summaries of what was said up to an item of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.knowledge import open_summary, seal_summary
from serve_app.state.records import StoredItem, decode_conversation, decode_item
from serve_app.state.scripts.summaries import KEEP_SUMMARY, LINE

__all__ = ["Line", "SummaryStore"]


@dataclass(frozen=True, slots=True)
class Line:
    """What was said up to an item.

    Attributes:
        items: oldest first; the last one is the item.
        persona: name of the persona that the conversation was begun with.
        summary: the latest there is of some beginning of it, or None.
        covered: how many of the items that summary is of.
        forgotten: how often items of the conversation were deleted.
    """

    items: tuple[StoredItem, ...]
    persona: str | None
    summary: str | None
    covered: int
    forgotten: int


class SummaryStore:
    """Reads what is to be summarised, and keeps the summary.

    Every method raises StateUnavailable when Redis can't be reached, and ConversationNotFound when
    the tenant has no such conversation.

    Args:
        scripts: how conversations are reached.
    """

    def __init__(self, scripts: ConversationScripts) -> None:
        self._scripts = scripts
        self._seal = scripts.seal

    async def line(self, tenant: str, conversation: str, item: str) -> Line | None:
        """Return what was said up to an item, or None if the item is gone."""
        state, *rest = await self._scripts.run(
            LINE, tenant, conversation, item, operation="summary"
        )
        if state == b"unknown":
            return None
        forgotten, body, summary, at, *pairs = rest
        items = tuple(
            decode_item(self._seal, tenant, conversation, pairs[i], pairs[i + 1])
            for i in range(0, len(pairs), 2)
        )
        places = {each.id: place for place, each in enumerate(items, 1)}
        return Line(
            items=items,
            persona=decode_conversation(self._seal, tenant, conversation, body).persona,
            summary=open_summary(self._seal, summary, tenant, conversation, at),
            covered=places.get(at.decode(), 0),
            forgotten=int(forgotten),
        )

    async def keep(
        self, tenant: str, conversation: str, item: str, text: str, *, forgotten: int
    ) -> bool:
        """Keep a summary of all up to an item.

        Args:
            tenant: whose conversation it is.
            conversation: its id.
            item: id of the last item that it is of.
            text: the summary.
            forgotten: of the `Line` that was summarised.

        Returns:
            False when an item was deleted meanwhile, whose words the summary may have.
        """
        sealed = seal_summary(self._seal, text, tenant, conversation, item)
        outcome = await self._scripts.run(
            KEEP_SUMMARY, tenant, conversation, item, sealed, forgotten, operation="summary"
        )
        return bool(outcome == b"stored")
