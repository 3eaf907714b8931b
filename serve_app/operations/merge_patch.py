"""JSON merge patches (RFC 7386): what has to be sent to make one object of another."""

from __future__ import annotations

from typing import Any

__all__ = ["merge_patch"]


def merge_patch(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the patch that turns `before` into `after`; empty if they are equal.

    Keys that go are null, lists that differ are sent whole.
    """
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif key not in before or old != value:
            patch[key] = value
    return patch
