"""Encryption of what is stored: AES-256-GCM, under keys that have ids and can be rotated.

A sealed value is `0x01`, the length of the key's id, the id, a nonce of 96 random bits, and the
ciphertext with its tag. Where the value lies (tenant, conversation, and what it is) is authenticated
with it: moved anywhere else, it does not open.
"""

from __future__ import annotations

import base64
import os
import secrets
import time
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from serve_app.errors import ConfigError, StateUnavailable
from serve_app.settings import EncryptionSettings

__all__ = ["KeyFile", "Seal", "is_sealed", "key_file", "key_of", "open_seal"]

_FORMAT = 1
_NONCE_BYTES = 12
_KEY_BYTES = 32


class SealingKey(BaseModel):
    """One key.

    Attributes:
        id: names it in what it has sealed.
        key: 32 bytes, in base64.
        created_at: Unix seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,32}$")
    key: SecretStr
    created_at: int = 0

    def secret(self) -> bytes:
        """Return the key's bytes.

        Raises:
            ConfigError: it is not 32 bytes in base64.
        """
        try:
            key = base64.b64decode(self.key.get_secret_value(), validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            msg = (
                f"The encryption key {self.id!r} is not {_KEY_BYTES} bytes in base64; make one "
                f"with `openssl rand -base64 {_KEY_BYTES}`."
            )
            raise ConfigError(msg, param="encryption.keys")
        return key


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    v: int = Field(1, ge=1, le=1)
    keys: tuple[SealingKey, ...] = Field(min_length=1)


class KeyFile:
    """The encryption keys of a home; the newest seals, all of them open.

    Args:
        file: readable by its owner only: JSON, or ID:BASE64 with commas between.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> tuple[SealingKey, ...]:
        """Return the keys, oldest first.

        Raises:
            ConfigError: the file isn't there or can't be read.
        """
        try:
            content = self.file.read_bytes()
            if content.lstrip()[:1] == b"{":
                return _Keys.model_validate_json(content).keys
            return _pairs(content.decode())
        except FileNotFoundError:
            reason = "it isn't there"
        except OSError as error:
            reason = error.strerror or "it can't be read"
        except ValueError:  # ValidationError is one
            reason = "it is not what Parley wrote, and not ID:BASE64"
        msg = (
            f"The encryption keys in {self.file} can't be read: {reason}. Restore the file, name "
            "keys in PARLEY_ENCRYPTION_KEYS, or set encryption.enabled to false to store plainly."
        )
        raise ConfigError(msg, param="encryption.keys_file")

    def ensure(self) -> bool:
        """Make the first key if there is no file; return whether one was made."""
        if self.file.exists():
            return False
        self._write((_new_key(),))
        return True

    def rotate(self) -> str:
        """Add a key that seals from the next start on, and return its id.

        Raises:
            ConfigError: the file can't be read.
        """
        made = _new_key()
        self._write((*(self.read() if self.file.exists() else ()), made))
        return made.id

    def retire(self) -> tuple[str, ...]:
        """Forget all keys but the newest, once nothing is sealed with them; return their ids.

        Raises:
            ConfigError: the file can't be read.
        """
        *old, newest = self.read()
        self._write((newest,))
        return tuple(key.id for key in old)

    def _write(self, keys: tuple[SealingKey, ...]) -> None:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        rows = ", ".join(
            f'{{"id": "{key.id}", "key": "{key.key.get_secret_value()}", '
            f'"created_at": {key.created_at}}}'
            for key in keys
        )
        draft = self.file.with_name(f".{self.file.name}.draft")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(f'{{"v": 1, "keys": [{rows}]}}\n')
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(self.file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


class Seal:
    """Seals and opens values; without keys it stores them as they are.

    Args:
        keys: the newest, which seals, last.
        opens_plain: open what is not sealed, too; without keys there is nothing else.

    Raises:
        ConfigError: a key is not one, or two have the same id.
    """

    def __init__(self, keys: tuple[SealingKey, ...] = (), *, opens_plain: bool = False) -> None:
        self._keys = keys
        self._opens_plain = opens_plain or not keys
        self._ciphers = {key.id.encode(): AESGCM(key.secret()) for key in keys}
        if len(self._ciphers) != len(keys):
            msg = "Two encryption keys have the same id; give each its own."
            raise ConfigError(msg, param="encryption.keys")
        self._newest = keys[-1].id.encode() if keys else b""

    @classmethod
    def opening_plain(cls, seal: Seal) -> Seal:
        """Return a seal of the same keys that opens what is not sealed, too."""
        return cls(seal._keys, opens_plain=True)

    @property
    def newest(self) -> str:
        """Id of the key that seals; "" where nothing is sealed."""
        return self._newest.decode()

    def seal(self, plain: bytes, *place: str) -> bytes:
        """Return what is stored of a value.

        Args:
            plain: the value.
            place: where it will lie: tenant, conversation, kind, id.
        """
        if not self._newest:
            return plain
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._newest].encrypt(nonce, plain, _bound(place))
        return b"".join((bytes((_FORMAT, len(self._newest))), self._newest, nonce, sealed))

    def open(self, stored: bytes, *place: str) -> bytes:
        """Return the value that was sealed for this place.

        Raises:
            StateUnavailable: it was sealed with a key that isn't here, for another place, or not
                at all although everything is meant to be.
        """
        if not is_sealed(stored):
            if self._opens_plain:
                return stored
            raise StateUnavailable(_plain(place))
        name = key_of(stored)
        cipher = self._ciphers.get(name.encode())
        if cipher is None:
            msg = (
                f"{place[-1]} was sealed with the encryption key {name!r}, which is not here: add "
                "it to the keys (setting encryption.keys_file, or PARLEY_ENCRYPTION_KEYS)."
            )
            raise StateUnavailable(msg)
        rest = stored[2 + stored[1] :]
        try:
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], _bound(place))
        except InvalidTag:
            msg = (
                f"What Redis holds of {place[-1]} was changed or moved by somebody else; restore "
                "it from a backup or delete it."
            )
            raise StateUnavailable(msg) from None


def open_seal(settings: EncryptionSettings, home: Path) -> Seal:
    """Take the keys that the settings name, else those of a home's key file.

    Raises:
        ConfigError: encryption is on, and no key can be had.
    """
    if not settings.enabled:
        return Seal()
    if settings.keys is not None:
        return Seal(_parse(settings.keys.get_secret_value()))
    return Seal(key_file(settings, home).read())


def key_file(settings: EncryptionSettings, home: Path) -> KeyFile:
    """Return the key file that the settings name, else a home's own."""
    return KeyFile(settings.keys_file or home / "encryption.json")


def is_sealed(stored: bytes) -> bool:
    """Whether a stored value is encrypted; plain ones are JSON or compressed, never 0x01 first."""
    return stored[:1] == bytes((_FORMAT,))


def key_of(stored: bytes) -> str:
    """Return the id of the key that a sealed value needs."""
    return stored[2 : 2 + stored[1]].decode("ascii", "replace")


def _parse(text: str) -> tuple[SealingKey, ...]:
    """Read `id:base64,id:base64`, newest last."""
    try:
        return _pairs(text)
    except ValueError:
        # Without its cause, which would quote the keys.
        msg = "PARLEY_ENCRYPTION_KEYS is not ID:BASE64, or several of them with commas between."
        raise ConfigError(msg, param="encryption.keys") from None


def _pairs(text: str) -> tuple[SealingKey, ...]:
    pairs = [pair.strip().split(":", 1) for pair in text.split(",")]
    return tuple(SealingKey(id=name, key=SecretStr(key)) for name, key in pairs)


def _new_key() -> SealingKey:
    key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
    return SealingKey(id=secrets.token_hex(4), key=SecretStr(key), created_at=int(time.time()))


def _bound(place: tuple[str, ...]) -> bytes:
    return "\0".join(place).encode("utf-8", "surrogatepass")


def _plain(place: tuple[str, ...]) -> str:
    return (
        f"{place[-1]} was stored without encryption, which is on now: `parley data reseal` encrypts "
        "what is there, or set encryption.enabled to false."
    )
