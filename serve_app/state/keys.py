"""API keys: shown once, stored as hashes, compared in constant time, revocable while serving."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.errors import ConfigError, Unauthorized
from serve_app.settings import AuthSettings
from serve_app.state.keyspace import check_tenant

__all__ = ["ApiKey", "KeyRing"]

_MARK = "pk"
_ID_BYTES = 4
_SECRET_BYTES = 32
# Compared against when a key's id is unknown, so that this takes as long as a wrong secret.
_NOBODY = hashlib.sha256(b"").hexdigest()


class ApiKey(BaseModel):
    """What is kept of a key.

    Attributes:
        id: public part of the key, which names it in lists and when it is revoked.
        name: what its owner calls it.
        tenant: whose conversations it opens.
        sha256: hash of the whole key, in hex. A key holds 256 random bits, so there is nothing to
            guess that a slow or salted hash would make slower.
        created_at: Unix seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    name: str
    tenant: str
    sha256: str
    created_at: int

    def __repr__(self) -> str:
        return f"ApiKey(id={self.id!r}, name={self.name!r}, tenant={self.tenant!r})"


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    v: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


class KeyRing:
    """The keys of one file, read again whenever the file changes.

    Args:
        file: JSON file, readable by its owner only; one that isn't there holds no keys.
        required: whether callers need a key; None: as soon as there is one.

    Raises:
        ConfigError: the file can't be read.
    """

    def __init__(self, file: Path, *, required: bool | None = None) -> None:
        self._file = file
        self._required = required
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, ApiKey] = {}
        self._ever_held_keys = False
        self._refresh()

    @classmethod
    def open(cls, auth: AuthSettings, home: Path) -> KeyRing:
        """Take the file that the settings name, else the one under `home`.

        Raises:
            ConfigError: the file can't be read.
        """
        return cls(auth.keys_file or home / "keys.json", required=auth.required)

    @property
    def file(self) -> Path:
        """Where the keys are."""
        return self._file

    @property
    def demands_key(self) -> bool:
        """Whether callers need a key: what the settings say, else whether one exists or has existed.

        Revoking the last key, or losing the file, must not open the door to everybody.
        """
        if self._required is not None:
            return self._required
        self._refresh()
        return self._ever_held_keys

    def list(self) -> tuple[ApiKey, ...]:
        """Return what is kept of every key, oldest first."""
        self._refresh()
        return tuple(self._keys.values())

    def authenticate(self, key: str) -> ApiKey:
        """Return the entry of a key that somebody presents.

        Raises:
            Unauthorized: there is no such key.
            ConfigError: the file was changed and can't be read.
        """
        self._refresh()
        parts = key.split("-", 2)
        entry = self._keys.get(parts[1]) if len(parts) == 3 and parts[0] == _MARK else None
        expected = entry.sha256 if entry else _NOBODY
        if not hmac.compare_digest(_hash(key), expected) or entry is None:
            msg = "This API key is not known here; `parley key create` makes one."
            raise Unauthorized(msg)
        return entry

    def create(self, name: str, tenant: str) -> str:
        """Make a key and return it; it can't be had a second time.

        Raises:
            ConfigError: the name is taken or empty, or the tenant's name can't be used.
        """
        check_tenant(tenant)
        if not name.strip():
            msg = "An API key needs a name by which to recognize it."
            raise ConfigError(msg, param="name")
        key_id = secrets.token_hex(_ID_BYTES)
        key = f"{_MARK}-{key_id}-{secrets.token_hex(_SECRET_BYTES)}"
        entry = ApiKey(
            id=key_id, name=name, tenant=tenant, sha256=_hash(key), created_at=int(time.time())
        )

        def add(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if any(other.name == name for other in keys):
                msg = f"There is an API key named {name!r} already; revoke it or take another name."
                raise ConfigError(msg, param="name")
            return (*keys, entry)

        self._rewrite(add)
        return key

    def revoke(self, name: str) -> ApiKey:
        """Remove a key, given its name or id; it is refused from its next request on.

        Raises:
            ConfigError: there is no such key.
        """
        removed: list[ApiKey] = []

        def remove(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            wanted = name.removeprefix(f"{_MARK}-")
            removed.extend(key for key in keys if name == key.name or wanted == key.id)
            if not removed:
                msg = f"There is no API key {name!r}; `parley key list` shows them."
                raise ConfigError(msg, param="name")
            return tuple(key for key in keys if key not in removed)

        self._rewrite(remove)
        return removed[0]

    def _refresh(self) -> None:
        try:
            status = self._file.stat()
        except FileNotFoundError:
            self._keys, self._seen = {}, None
            return
        # A rewritten file is another inode, whatever the clock's resolution.
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._seen:
            self._keys = {key.id: key for key in self._read()}
            self._seen = stamp

    def _read(self) -> tuple[ApiKey, ...]:
        try:
            keys = _KeyFile.model_validate_json(self._file.read_bytes()).keys
        except FileNotFoundError:
            return ()
        except (ValidationError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not what Parley wrote"
            msg = f"The API keys in {self._file} can't be read: {reason}; mend it or remove it."
            raise ConfigError(msg) from None
        self._ever_held_keys = self._ever_held_keys or bool(keys)
        return keys

    def _rewrite(self, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            content = _KeyFile(keys=change(self._read())).model_dump_json(indent=2)
            draft = self._file.with_name(f".{self._file.name}.draft")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(content + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Two `parley key` commands at once must not lose each other's key.
        with self._file.with_name(f".{self._file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _hash(key: str) -> str:
    # A header may hold anything, half surrogates too.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
