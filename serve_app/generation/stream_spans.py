"""What traces tell of streams: queue, prefill and decode, as the engine has measured them.

Spans are made when a stream has ended, out of what its last frame says: nothing is done per token.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from serve_app.messages.generation import Finished, FinishReason, Frame, GenerateRequest
from serve_app.telemetry import tracing
from serve_app.telemetry.origin import origin_of, within

__all__ = ["StreamSpans"]

logger = logging.getLogger(__name__)

_FAILED = {FinishReason.ERROR, FinishReason.DEADLINE, FinishReason.CANCELLED}


class StreamSpans:
    """The streams of a replica that are traced, or whose end is logged; none, if nobody wants either."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], tuple[GenerateRequest, int]] = {}

    def begin(self, request: GenerateRequest) -> None:
        """Take note of a stream, before the engine has it."""
        if tracing.tracing() or logger.isEnabledFor(logging.DEBUG):
            self._open[request.subscriber, request.stream] = (request, time.time_ns())

    def forget(self, request: GenerateRequest) -> None:
        """Let go of a stream that the engine has refused."""
        self._open.pop((request.subscriber, request.stream), None)

    def deliver(self, frames: Mapping[str, Frame]) -> None:
        """Tell of the streams that end in a step's frames; called from the engine's thread."""
        if not self._open:
            return
        for subscriber, frame in frames.items():
            for finished in frame.finished:
                begun = self._open.pop((subscriber, finished.stream), None)
                if begun is not None:
                    _tell(*begun, finished)


def _tell(request: GenerateRequest, began_ns: int, finished: Finished) -> None:
    origin = origin_of(request)
    with within(origin):
        logger.debug(
            "%s ended: %s after %d tokens; %.3f s queued, %.3f s prefill, %.3f s decode.",
            request.request_id,
            finished.reason,
            finished.completion_tokens,
            finished.queue_s,
            finished.prefill_s,
            finished.decode_s,
        )
    parts = []
    at = began_ns
    for name, seconds in (
        ("queue", finished.queue_s),
        ("prefill", finished.prefill_s),
        ("decode", finished.decode_s),
    ):
        end = at + int(seconds * 1e9)
        parts.append(tracing.Part(name, at, end))
        at = end
    code = finished.error_code or str(finished.reason)
    tracing.record(
        "generate",
        "server",
        origin,
        {
            "parley.stream.id": request.request_id,
            "parley.finish_reason": str(finished.reason),
            "parley.prompt_tokens": finished.prompt_tokens,
            "parley.cached_tokens": finished.cached_tokens,
            "parley.completion_tokens": finished.completion_tokens,
            "parley.moves": request.moves,
        },
        start_ns=began_ns,
        end_ns=max(at, time.time_ns()),
        parts=parts,
        failed=code if finished.reason in _FAILED else None,
    )
