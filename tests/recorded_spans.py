"""Spans kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.telemetry import tracing
from serve_app.telemetry.otel import OtelRecorder


@dataclass(frozen=True)
class Spans:
    """What this process has recorded."""

    exporter: InMemorySpanExporter

    def all(self) -> list[ReadableSpan]:
        """All that have ended, in the order of their ends."""
        return list(self.exporter.get_finished_spans())

    def clear(self) -> None:
        self.exporter.clear()

    def named(self, name: str) -> list[ReadableSpan]:
        return [one for one in self.all() if one.name == name]

    def one(self, name: str) -> ReadableSpan:
        (found,) = self.named(name)
        return found

    def tree(self) -> dict[str, str | None]:
        """Return the name of each span's parent, by the span's name; None for a root's."""
        names = {one.context.span_id: one.name for one in self.all() if one.context}
        return {
            one.name: None if one.parent is None else names.get(one.parent.span_id, "elsewhere")
            for one in self.all()
        }


@contextmanager
def recorded_spans(*, ratio: float = 1.0, takes_text: bool = False) -> Iterator[Spans]:
    """Record the spans of a block."""
    exporter = InMemorySpanExporter()
    recorder = OtelRecorder(
        SimpleSpanProcessor(exporter), ratio=ratio, deployment="Ingress", replica="r1"
    )
    tracing.use(recorder, takes_text=takes_text)
    try:
        yield Spans(exporter)
    finally:
        tracing.use(None)
