"""Spans of a request's way, if anybody wants them.

Off, which is the default, `span` returns an object that does nothing, and OpenTelemetry is not imported
here. On, `serve_app.telemetry.otel` makes spans; it is the one module that knows OpenTelemetry. A span is
part of the trace that the current `Origin` names; where none does, there is no span, but for `root`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import TracebackType
from typing import Literal, Protocol

from serve_app.errors import ConfigError
from serve_app.settings import TelemetrySettings
from serve_app.telemetry.origin import Origin, current
from serve_app.telemetry.trace_context import TraceParent

__all__ = [
    "NO_SPAN",
    "Attributes",
    "Kind",
    "Part",
    "Recorder",
    "Span",
    "Value",
    "record",
    "require_exporter",
    "root",
    "span",
    "start",
    "takes_text",
    "tracing",
    "use",
    "within_span",
]

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]
Kind = Literal["server", "client", "internal"]

_EXPORTER = "opentelemetry.exporter.otlp.proto.http"


class Span:
    """A span that nobody records; what the real ones are seen as.

    As a block, it is what everything in the block is part of, and an error that leaves the block is the
    span's.
    """

    __slots__ = ()
    recording = False

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def rename(self, name: str) -> None:
        """Give it another name."""

    def fail(self, code: str) -> None:
        """Mark it as failed, with a stable code and no sentence: that may quote a request."""

    def end(self) -> None:
        """End it; a second time does nothing."""

    def origin(self) -> Origin | None:
        """Return the current origin, with this span as what further work is part of."""
        return current()

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the block."""


NO_SPAN = Span()


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a span that is over: its name, and nanoseconds since the epoch."""

    name: str
    start_ns: int
    end_ns: int


class Recorder(Protocol):
    """Makes spans; see `serve_app.telemetry.otel`."""

    def span(
        self, name: str, kind: Kind, parent: str | None, attributes: Attributes | None
    ) -> Span:
        """Begin a span."""

    def record(
        self,
        name: str,
        kind: Kind,
        parent: str,
        attributes: Attributes,
        *,
        start_ns: int,
        end_ns: int,
        parts: Sequence[Part],
        failed: str | None,
    ) -> None:
        """Record a span that is over."""


_recorder: Recorder | None = None
_takes_text = False


def start(settings: TelemetrySettings, *, deployment: str, replica: str) -> None:
    """Have this process trace, if the settings say so.

    Args:
        settings: whether, where to, how many.
        deployment: such as Ingress.
        replica: its unique id.

    Raises:
        ConfigError: OpenTelemetry's exporter is not installed.
    """
    if not settings.traces:
        use(None)
        return
    require_exporter(settings)
    # Late: whoever doesn't trace doesn't load it.
    from serve_app.telemetry.otel import OtelRecorder

    recorder = OtelRecorder.exporting(settings, deployment=deployment, replica=replica)
    use(recorder, takes_text=settings.trace_text)


def require_exporter(settings: TelemetrySettings) -> None:
    """Refuse to trace without what sends spans.

    Raises:
        ConfigError: OpenTelemetry's exporter is not installed.
    """
    if not settings.traces:
        return
    try:
        found = find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        msg = (
            "telemetry.traces is on, and OpenTelemetry's exporter is not installed: "
            "run `pip install 'parley[otel]'` on every node, or set telemetry.traces to false."
        )
        raise ConfigError(msg, param="telemetry.traces")


def use(recorder: Recorder | None, *, takes_text: bool = False) -> None:
    """Set what makes this process's spans; None makes none."""
    global _recorder, _takes_text
    _recorder, _takes_text = recorder, takes_text and recorder is not None


def tracing() -> bool:
    """Whether this process makes spans at all."""
    return _recorder is not None


def takes_text() -> bool:
    """Whether spans may have what people and the model say."""
    return _takes_text


def root(name: str, attributes: Attributes | None = None) -> Span:
    """Begin the span of a request from outside, in the caller's trace if it brings one."""
    if _recorder is None:
        return NO_SPAN
    origin = current() or Origin()
    return _recorder.span(name, "server", origin.traceparent, attributes)


def span(name: str, kind: Kind = "internal", attributes: Attributes | None = None) -> Span:
    """Begin a span below the current one; none, where there is no current one or it isn't sampled."""
    if _recorder is None or (parent := _sampled_parent(current())) is None:
        return NO_SPAN
    return _recorder.span(name, kind, parent, attributes)


def record(
    name: str,
    kind: Kind,
    origin: Origin | None,
    attributes: Attributes,
    *,
    start_ns: int,
    end_ns: int,
    parts: Sequence[Part] = (),
    failed: str | None = None,
) -> None:
    """Record a span that is over, with its parts, as part of an origin's trace.

    Args:
        name: what was done.
        kind: on which side of a call.
        origin: what it was done for; nothing is recorded if that isn't sampled.
        attributes: the span's.
        start_ns: nanoseconds since the epoch.
        end_ns: likewise.
        parts: one after the other.
        failed: stable code of the error that ended it.
    """
    if _recorder is not None and (parent := _sampled_parent(origin)) is not None:
        _recorder.record(
            name,
            kind,
            parent,
            attributes,
            start_ns=start_ns,
            end_ns=end_ns,
            parts=parts,
            failed=failed,
        )


def within_span(origin: Origin | None, traceparent: str) -> Origin:
    """Return an origin whose work is part of a span."""
    return replace(origin or Origin(), traceparent=traceparent)


def _sampled_parent(origin: Origin | None) -> str | None:
    if origin is None or origin.traceparent is None:
        return None
    parent = TraceParent.parse(origin.traceparent)
    return origin.traceparent if parent is not None and parent.sampled else None
