"""What Parley tells of its requests: metrics, traces, logs, accounts."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from serve_app.settings.section import Positive, Section

__all__ = ["AccountsSettings", "MetricsSettings", "TelemetrySettings"]


class AccountsSettings(Section):
    """How long it is known where the time of a request went."""

    kept: int = Field(
        1000, ge=0, description="most accounts of requests kept per tenant; 0 keeps none"
    )
    ttl_s: Positive = Field(900, description="time for which an account is kept")


class MetricsSettings(Section):
    """Where metrics are had beside the Ingress's `/metrics`."""

    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port on which each node answers `/metrics` for all of its replicas; wanted where "
        "there are several nodes, since the Ingress's comes from whichever node has answered; 0: none",
    )


class TelemetrySettings(Section):
    """What Parley tells of its requests in traces and logs."""

    traces: bool = Field(
        default=False,
        description="send spans of each request's way to an OpenTelemetry collector; takes "
        "`pip install 'parley[otel]'`",
    )
    trace_endpoint: str = Field(
        "http://127.0.0.1:4318/v1/traces",
        description="where spans go, by OTLP over HTTP; credentials go into "
        "OTEL_EXPORTER_OTLP_HEADERS of the environment",
    )
    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the requests that are traced, of those that come without a trace of "
        "their own",
    )
    trace_text: bool = Field(
        default=False,
        description="put what people and the model say into spans, and what exceptions quote of it "
        "into logs",
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="form of the replicas' logs: `json` is one object a line, `text` leaves it to "
        "Serve's logging_config.encoding",
    )

    @field_validator("trace_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, endpoint: str) -> str:
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", endpoint):
            # It isn't quoted: it may hold a password.
            msg = (
                "give an http:// or https:// URL without user, password and query, such as "
                "http://collector:4318/v1/traces"
            )
            raise ValueError(msg)
        return endpoint
