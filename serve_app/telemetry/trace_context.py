"""The header `traceparent`, as W3C's Trace Context (level 2) writes it.

Source: https://www.w3.org/TR/trace-context-2/#traceparent-header
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LONGEST_HEADER", "TRACE_HEADER", "TraceParent"]

TRACE_HEADER = b"parley-traceparent"
"""Holds a client's `traceparent` behind the ingress's edge, if it is one: for the header's real name Serve
would begin spans of its own."""

LONGEST_HEADER = 256
"""A longer one is none. This version's has 55 signs; later ones may put more behind."""

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SAMPLED = 0x01
_KNOWN_FLAGS = 0x03  # sampled, and that the trace's id is random


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A span somewhere.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        flags: those that are known.
    """

    trace_id: str
    span_id: str
    flags: int

    @classmethod
    def parse(cls, header: str) -> TraceParent | None:
        """Return what a header says, or None if it says nothing that counts."""
        if len(header) > LONGEST_HEADER or (found := _FORM.fullmatch(header.strip(" \t"))) is None:
            return None
        version, trace_id, span_id, flags, rest = found.groups()
        if version == "ff" or (version == "00" and rest is not None):
            return None
        if not (trace_id.strip("0") and span_id.strip("0")):
            return None
        return cls(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)

    @property
    def sampled(self) -> bool:
        """Whether whoever began the trace records it."""
        return bool(self.flags & _SAMPLED)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"
