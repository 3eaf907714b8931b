"""Items between the form in which deployments pass them and the one in which they are stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple

from serve_app.messages.dialogue import Item
from serve_app.state.records import StoredItem

__all__ = ["as_items", "as_stored"]


def as_items(stored: Iterable[StoredItem]) -> tuple[Item, ...]:
    """Return stored items as they are passed on."""
    return tuple(Item(*astuple(item)) for item in stored)


def as_stored(items: Iterable[Item]) -> tuple[StoredItem, ...]:
    """Return items as they are stored."""
    return tuple(StoredItem(*astuple(item)) for item in items)
