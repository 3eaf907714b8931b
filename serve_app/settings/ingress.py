"""What is accepted over HTTP, and from whom."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from serve_app.settings.section import Positive, Seconds, Section

__all__ = ["AuthSettings", "IngressSettings"]


class IngressSettings(Section):
    """What the HTTP side accepts."""

    max_body_bytes: Positive = Field(1_048_576, description="largest request body")
    max_json_depth: Positive = Field(32, description="deepest nesting of a JSON body")
    max_messages: Positive = Field(2048, description="most messages in one request")
    read_timeout_s: Seconds = Field(
        10.0, description="time in which a request's head, and then its body, must arrive"
    )
    request_timeout_s: Seconds = Field(
        600.0, description="time from a request's arrival in which its reply must be done"
    )
    max_choices: Positive = Field(8, description="largest `n`")
    max_concurrent: Positive = Field(512, description="requests in progress per ingress replica")
    admission_timeout_s: Seconds = Field(
        30.0, description="time in which a generator must take a request or refuse it"
    )
    start_timeout_s: Seconds = Field(
        180.0,
        description="time that a request waits for a generator while none is up, as the first one starts "
        "or the only one is replaced; longer than generator.drain_timeout_s and a start together",
    )
    generator_silence_s: Seconds = Field(
        10.0, description="a generator that sends no frame for this long is taken for lost"
    )
    max_moves: int = Field(
        3,
        ge=0,
        description="how often a reply may go on with another generator when its own is lost; once "
        "more, and it ends with an error. One that stops in good order doesn't count",
    )


class AuthSettings(Section):
    """Who may call."""

    keys_file: Path | None = Field(
        None,
        description="JSON file of hashed API keys; null takes PARLEY_HOME/keys.json if it exists",
    )
    required: bool | None = Field(
        None, description="refuse requests without a key; null means: as soon as a key exists"
    )
