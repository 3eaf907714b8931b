"""Finding stop strings in a text that arrives in pieces.

The match that is complete first wins, and of several that are complete with the same character
the longest: whatever the pieces, the stream ends at the first moment at which it can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from serve_app.errors import InvalidRequest

__all__ = ["StopMatcher", "StopStrings"]


class StopStrings:
    """A set of stop strings as an automaton; built once per request, shared by its choices.

    A node stands for a prefix of a stop string. Following the text, the automaton is always in the
    longest prefix with which the text ends: just what has to be held back. Each character costs
    the same, however many and long the strings are. Source: Aho and Corasick 1975.

    Args:
        stops: the strings.

    Raises:
        InvalidRequest: a string is empty.
    """

    __slots__ = ("_children", "_depths", "_fallbacks", "_matches", "firsts")

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            msg = "A stop string must not be empty."
            raise InvalidRequest(msg, param="stop")
        self.firsts = frozenset(stop[0] for stop in stops)
        self._children: list[dict[str, int]] = [{}]
        self._depths = [0]
        self._matches: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self._fallbacks = [0] * len(self._children)
        self._link()

    def _insert(self, stop: str) -> None:
        node = 0
        for character in stop:
            child = self._children[node].get(character)
            if child is None:
                child = len(self._children)
                self._children[node][character] = child
                self._children.append({})
                self._depths.append(self._depths[node] + 1)
                self._matches.append(None)
            node = child
        self._matches[node] = stop

    def _link(self) -> None:
        """Give each node its fallback: the longest other prefix with which it ends."""
        nodes = deque(self._children[0].values())
        while nodes:
            node = nodes.popleft()
            fallback = self._fallbacks[node]
            self._matches[node] = self._matches[node] or self._matches[fallback]
            for character, child in self._children[node].items():
                self._fallbacks[child] = self.step(fallback, character)
                nodes.append(child)

    def step(self, node: int, character: str) -> int:
        """Return the node after one more character."""
        while node and character not in self._children[node]:
            node = self._fallbacks[node]
        return self._children[node].get(character, 0)

    def depth(self, node: int) -> int:
        """Return how many of the last characters could be the beginning of a stop string."""
        return self._depths[node]

    def match(self, node: int) -> str | None:
        """Return the longest stop string that is complete at this node."""
        return self._matches[node]


class StopMatcher:
    """One stream's search.

    Attributes:
        matched: the stop string that ended the text, or None so far.
    """

    __slots__ = ("_held", "_node", "_stops", "matched")

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._node = 0
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Take the next piece; return all text that can't belong to a stop string any more.

        Once `matched` is set, the text has ended in front of the stop string, and what follows it
        is dropped.
        """
        if self.matched is not None:
            return ""
        if not self._node and self._stops.firsts.isdisjoint(text):
            return text
        whole = self._held + text
        node = self._node
        for end, character in enumerate(text, len(self._held) + 1):
            node = self._stops.step(node, character)
            self.matched = self._stops.match(node)
            if self.matched is not None:
                self._held = ""
                return whole[: end - len(self.matched)]
        self._node = node
        cut = len(whole) - self._stops.depth(node)
        self._held = whole[cut:]
        return whole[:cut]

    def flush(self) -> str:
        """Return what was held back, at the end of a text without a stop string."""
        held, self._held = self._held, ""
        return held
