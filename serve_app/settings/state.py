"""Where state is kept, and sealed how."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from serve_app.settings.section import Positive, Seconds, Section

__all__ = ["EncryptionSettings", "RedisSettings"]


class RedisSettings(Section):
    """Where state lives."""

    url: SecretStr | None = Field(
        None, description="redis:// or rediss:// URL; null takes the one that `parley up` started"
    )
    url_file: Path | None = Field(
        None,
        description="file that holds the URL, such as a mounted secret; read at the start, where "
        "`url` is null",
    )
    replicas: int = Field(
        0,
        ge=0,
        description="replicas of Redis that must have a turn before it counts as stored; a Redis "
        "with a failover wants 1 or more",
    )
    timeout_s: Seconds = Field(2.0, description="longest wait for one answer")
    pool_size: Positive = Field(64, description="most connections per replica")
    key_prefix: str = Field("parley", description="first part of every key")


class EncryptionSettings(Section):
    """Encryption of what is stored."""

    enabled: bool = Field(default=True, description="false stores what people say as it is")
    keys_file: Path | None = Field(
        None,
        description="file of keys, in JSON or as in `keys`; null takes PARLEY_HOME/encryption.json, "
        "which the first `parley up` makes",
    )
    keys: SecretStr | None = Field(
        None, description="the keys themselves, as ID:BASE64, newest last, with commas between"
    )
