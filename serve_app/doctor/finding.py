"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "State"]

State = Literal["ok", "optional", "missing"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What there is of one thing, and what to do if that isn't enough.

    Attributes:
        name: the thing.
        state: `ok`; `optional` where it is missing or short and the model is served without it; `missing` where that
            keeps the model from being served.
        found: what there is.
        advice: what to do, or nothing.
    """

    name: str
    state: State
    found: str
    advice: str = ""
