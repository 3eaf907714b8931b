"""What is known of a conversation beside its words, as it is stored: states and summaries."""

from __future__ import annotations

from serve_app.state.records import Record, seal_record, unseal_record
from serve_app.state.sealing import Seal

__all__ = ["open_state", "open_summary", "seal_state", "seal_summary"]


def seal_state(seal: Seal, state: Record, tenant: str, conversation: str, item: str) -> bytes:
    """Return what is stored of the state of the line that ends in an item."""
    return seal_record(seal, {"state": state}, tenant, conversation, f"{item}:state")


def open_state(
    seal: Seal, stored: bytes, tenant: str, conversation: str, item: bytes
) -> Record | None:
    """Read back what `seal_state` wrote; None where nothing was.

    Raises:
        StateUnavailable: it is damaged, or its key is not here.
    """
    if not stored:
        return None
    place = f"{item.decode()}:state"
    return dict(unseal_record(seal, stored, tenant, conversation, place)["state"])


def seal_summary(seal: Seal, text: str, tenant: str, conversation: str, item: str) -> bytes:
    """Return what is stored of the summary of the line up to an item."""
    return seal_record(seal, {"text": text}, tenant, conversation, f"{item}:summary")


def open_summary(
    seal: Seal, stored: bytes, tenant: str, conversation: str, item: bytes
) -> str | None:
    """Read back what `seal_summary` wrote; None where nothing was.

    Raises:
        StateUnavailable: it is damaged, or its key is not here.
    """
    if not stored:
        return None
    place = f"{item.decode()}:summary"
    return str(unseal_record(seal, stored, tenant, conversation, place)["text"])
