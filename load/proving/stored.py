"""What is stored in the end, as `parley data export` finds it: every key is looked at."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from load.in_process.life import Life
from load.in_process.lost_answers import LostAnswers
from load.in_process.replicas import MortalPool
from load.in_process.service import InProcessService
from serve_app.state.archive import Archive, Scope

__all__ = ["Place", "Said", "stored_of"]


@dataclass(frozen=True, slots=True)
class Said:
    """An item that is stored.

    Attributes:
        id: its id.
        role: who says it.
        text: what.
        response: of whose turn it is, or None.
        after: id of the item before it, or None.
        current: whether it is on the line that ends in the head.
    """

    id: str
    role: str
    text: str
    response: str | None
    after: str | None
    current: bool


@dataclass(slots=True)
class Place:
    """A conversation that is stored, known to clients or not.

    Attributes:
        id: its id.
        items: all of it, by id, in the order in which they were stored.
        responses: by id.
    """

    id: str
    items: dict[str, Said] = field(default_factory=dict)
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)

    def turns(self) -> dict[str, list[Said]]:
        """Return the items of each response's turn, in the order in which they were stored."""
        turns: dict[str, list[Said]] = defaultdict(list)
        for item in self.items.values():
            if item.response is not None:
                turns[item.response].append(item)
        return turns

    def line(self, item: str | None) -> list[Said]:
        """Return the items from the root to one, oldest first."""
        back = []
        while item is not None and item in self.items:
            back.append(self.items[item])
            item = back[-1].after
        return back[::-1]


async def stored_of(service: InProcessService, tenant: str) -> dict[str, Place]:
    """Return all that is stored of a tenant, by conversation."""
    pool = MortalPool(service.url, service.settings, Life("archive"), LostAnswers())
    archive = Archive(pool, key_prefix=service.settings.redis.key_prefix, seal=service.seal)
    places: dict[str, Place] = {}
    try:
        async for record in archive.export(Scope(tenant)):
            match record["type"]:
                case "conversation":
                    places[record["id"]] = Place(record["id"])
                case "item":
                    places[record["conversation"]].items[record["id"]] = Said(
                        record["id"],
                        record["role"],
                        record["content"],
                        record["response"],
                        record["after"],
                        record["current"],
                    )
                case "response":
                    value = record["value"]
                    places[record["conversation"]].responses[value["id"]] = value
    finally:
        await pool.close()
    return places
