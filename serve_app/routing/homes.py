"""Where conversations are cached: what an ingress sent where, and what generators tell every ingress."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

__all__ = ["Homes", "LatestKeys"]

_KEY_BYTES = 8
# Of a replica, 2 kB a second: more conversations than a prefix cache holds of most models.
_MOST_TOLD = 256
# What a replica tells is known everywhere after a second, or two on a busy machine.
_TOLD_AFTER_S = 3.0
# Conversations whose home is remembered; one takes some hundred bytes.
_MOST_HOMES = 65536


class LatestKeys:
    """The affinity keys of a replica's latest streams."""

    def __init__(self) -> None:
        # Oldest first.
        self._keys: dict[bytes, None] = {}

    def add(self, key: str) -> None:
        """Take note of a stream that came just now."""
        name = _short(key)
        self._keys.pop(name, None)
        self._keys[name] = None
        if len(self._keys) > _MOST_TOLD:
            del self._keys[next(iter(self._keys))]

    def told(self) -> bytes:
        """Return what routers are told: eight bytes a key, the latest first. Any thread may call it."""
        return b"".join(reversed(list(self._keys)))


class Homes:
    """Where each affinity key went last, as far as an ingress knows.

    It knows where it sent a key itself; another ingress may have sent it elsewhere since.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By key, with when it was; least recently used first.
        self._sent: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def remember(self, key: str, place: str) -> None:
        """Take note that a stream was sent somewhere just now.

        Args:
            key: its affinity key.
            place: the replica or the pool that took it.
        """
        self._sent[key] = place, self._clock()
        self._sent.move_to_end(key)
        if len(self._sent) > _MOST_HOMES:
            self._sent.popitem(last=False)

    def sent(self, key: str) -> str | None:
        """Return where a key was last sent from here."""
        return self._sent.get(key, (None, 0.0))[0]

    def find(self, key: str, told: Iterable[tuple[str, bytes]]) -> str | None:
        """Return the place that had a key last, as well as anybody knows, or None.

        Where several places tell of it, that is the one that had the fewest others since. What was sent
        from here counts until that has been told too, and where nobody tells.

        Args:
            key: an affinity key.
            told: places that there are now, each with what a replica there tells, see `LatestKeys.told`.
        """
        sent, at = self._sent.get(key, (None, 0.0))
        if sent is not None and self._clock() - at < _TOLD_AFTER_S:
            return sent
        name = _short(key)
        known = [
            (since, place)
            for place, keys in told
            if (since := _keys_before(name, keys)) is not None
        ]
        return min(known)[1] if known else sent


def _keys_before(name: bytes, keys: bytes) -> int | None:
    at = keys.find(name)
    while at % _KEY_BYTES and at >= 0:  # the end of one key and the beginning of the next
        at = keys.find(name, at + 1)
    return None if at < 0 else at // _KEY_BYTES


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=_KEY_BYTES).digest()
