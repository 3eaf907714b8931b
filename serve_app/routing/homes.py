"""Which conversations a generator had last, as it tells every router."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

__all__ = ["LatestKeys", "find_home"]

_KEY_BYTES = 8
# Of a replica, 2 kB a second: more conversations than a prefix cache holds of most models.
_MOST = 256


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
        if len(self._keys) > _MOST:
            del self._keys[next(iter(self._keys))]

    def told(self) -> bytes:
        """Return what routers are told: eight bytes a key, the latest first."""
        return b"".join(reversed(list(self._keys)))


def find_home(key: str, told: Mapping[str, bytes]) -> str | None:
    """Return the replica that had a key last, or None where none tells of it.

    Where several do, it is the one that had the fewest others since.

    Args:
        key: a stream's affinity key.
        told: what each replica tells, see `LatestKeys.told`.
    """
    name = _short(key)
    places = {replica: _place(name, keys) for replica, keys in told.items()}
    known = [replica for replica, place in places.items() if place >= 0]
    return min(known, key=lambda replica: (places[replica], replica), default=None)


def _place(name: bytes, keys: bytes) -> int:
    """Return how many keys come before one, -1 where it isn't there."""
    at = keys.find(name)
    while at % _KEY_BYTES and at >= 0:  # the end of one key and the beginning of the next
        at = keys.find(name, at + 1)
    return at // _KEY_BYTES


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=_KEY_BYTES).digest()
