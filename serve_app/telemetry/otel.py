"""Spans as OpenTelemetry makes and sends them. Imported only where `telemetry.traces` is on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from serve_app import __version__
from serve_app.errors import ParleyError
from serve_app.settings import TelemetrySettings
from serve_app.telemetry.origin import Origin, current, within
from serve_app.telemetry.trace_context import TraceParent
from serve_app.telemetry.tracing import Attributes, Kind, Part, Span, within_span

__all__ = ["OtelRecorder"]

_KINDS = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "internal": SpanKind.INTERNAL,
}
# Spans that wait to be sent, and those of one message. What comes on top is dropped: a collector that is
# away costs memory for so many, and nobody waits for it.
_MOST_WAITING, _MOST_TOGETHER = 4096, 512
_SEND_EVERY_MS = 1000
_SEND_TIMEOUT_S = 10
# What is said, where it is asked for, is cut to so many signs.
_LONGEST_VALUE = 32_768


class OtelRecorder:
    """Makes spans.

    Args:
        processor: takes those that have ended.
        ratio: share of the traces begun here that are sampled.
        deployment: such as Ingress.
        replica: its unique id.
    """

    def __init__(
        self, processor: SpanProcessor, *, ratio: float, deployment: str, replica: str
    ) -> None:
        provider = TracerProvider(
            # A trace that a caller began goes by the caller's own decision.
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create(
                {
                    "service.namespace": "parley",
                    "service.name": f"parley-{deployment.lower()}",
                    "service.version": __version__,
                    "service.instance.id": replica,
                }
            ),
            span_limits=SpanLimits(
                max_span_attributes=64, max_span_attribute_length=_LONGEST_VALUE
            ),
        )
        provider.add_span_processor(processor)
        self._provider = provider
        self._tracer = provider.get_tracer("parley", __version__)

    @classmethod
    def exporting(
        cls, settings: TelemetrySettings, *, deployment: str, replica: str
    ) -> OtelRecorder:
        """Return one that sends spans by OTLP over HTTP, from a thread of its own."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=settings.trace_endpoint, timeout=_SEND_TIMEOUT_S)
        processor = BatchSpanProcessor(
            exporter,
            max_queue_size=_MOST_WAITING,
            max_export_batch_size=_MOST_TOGETHER,
            schedule_delay_millis=_SEND_EVERY_MS,
        )
        return cls(processor, ratio=settings.trace_ratio, deployment=deployment, replica=replica)

    def span(
        self, name: str, kind: Kind, parent: str | None, attributes: Attributes | None
    ) -> Span:
        """Begin a span; see `tracing.span`."""
        return _Recorded(
            self._tracer.start_span(
                name, _context(parent), _KINDS[kind], attributes, record_exception=False
            )
        )

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
        """Record a span that is over; see `tracing.record`."""
        span = self._tracer.start_span(
            name, _context(parent), _KINDS[kind], attributes, start_time=start_ns
        )
        below = set_span_in_context(span, Context())
        for part in parts:
            inner = self._tracer.start_span(part.name, below, start_time=part.start_ns)
            inner.end(part.end_ns)
        if failed is not None:
            _fail(span, failed)
        span.end(end_ns)

    def shut_down(self) -> None:
        """Send what waits, and stop."""
        self._provider.shutdown()


class _Recorded(Span):
    """A span of OpenTelemetry's."""

    __slots__ = ("_ended", "_span", "_within", "recording")

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        self._ended = False
        self._within: within | None = None
        self.recording = span.is_recording()

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(dict(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, code: str) -> None:
        _fail(self._span, code)

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._span.end()

    def origin(self) -> Origin:
        return within_span(current(), _traceparent(self._span.get_span_context()))

    def __enter__(self) -> Span:
        self._within = within(self.origin())
        self._within.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.fail(_code(error))
        if self._within is not None:
            self._within.__exit__(kind, error, traceback)
        self.end()


def _fail(span: OtelSpan, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR))


def _code(error: BaseException) -> str:
    if isinstance(error, ParleyError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__qualname__


def _context(parent: str | None) -> Context:
    """Return OpenTelemetry's context below a span, and not below whatever is current there."""
    found = TraceParent.parse(parent) if parent is not None else None
    if found is None:
        return Context()
    remote = SpanContext(
        int(found.trace_id, 16),
        int(found.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(found.flags),
    )
    return set_span_in_context(NonRecordingSpan(remote), Context())


def _traceparent(context: SpanContext) -> str:
    trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return str(TraceParent(trace_id, span_id, int(context.trace_flags) & 0x03))
