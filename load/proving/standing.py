"""Where everything stands that comes to no end: what it waits in, for whoever looks for the reason."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["standing"]


def standing() -> list[str]:
    """Return where each of the loop's tasks stands, from its outermost function to what it waits in."""
    return sorted(_where(task) for task in asyncio.all_tasks())


def _where(task: asyncio.Task[Any]) -> str:
    places = []
    work: Any = task.get_coro()
    while work is not None:
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(work, f"{kind}_code")), None)
        if kind is None:
            places.append(type(work).__name__)
            break
        frame = getattr(work, f"{kind}_frame")
        name = getattr(work, f"{kind}_code").co_qualname
        places.append(f"{name}:{frame.f_lineno if frame is not None else '-'}")
        work = getattr(work, f"{kind}_yieldfrom" if kind == "gi" else f"{kind}_await")
    return " > ".join(places)
