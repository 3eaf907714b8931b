"""What a step has to say, gathered into one frame per subscriber."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serve_app.messages.generation import Begun, Finished, Frame, GenerateRequest, TokenLogprobs

__all__ = ["Deliver", "Outbox"]

Deliver = Callable[[Mapping[str, Frame]], None]


@dataclass(slots=True)
class _Columns:
    streams: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)

    def frame(self) -> Frame:
        wanted = any(entry is not None for entry in self.logprobs)
        return Frame(
            streams=tuple(self.streams),
            tokens=tuple(self.tokens),
            logprobs=tuple(self.logprobs) if wanted else None,
            finished=tuple(self.finished),
            begun=tuple(self.begun),
        )


class Outbox:
    """Collects the tokens and the ends of streams between two deliveries."""

    def __init__(self) -> None:
        self._columns: defaultdict[str, _Columns] = defaultdict(_Columns)

    def token(self, request: GenerateRequest, token: int, logprobs: TokenLogprobs | None) -> None:
        """Add a token of a stream."""
        columns = self._columns[request.subscriber]
        columns.streams.append(request.stream)
        columns.tokens.append(token)
        columns.logprobs.append(logprobs)

    def begun(self, request: GenerateRequest, begun: Begun) -> None:
        """Add what is known of a stream with its reply's first token."""
        self._columns[request.subscriber].begun.append(begun)

    def finished(self, request: GenerateRequest, finished: Finished) -> None:
        """Add the end of a stream."""
        self._columns[request.subscriber].finished.append(finished)

    def deliver(self, deliver: Deliver) -> None:
        """Hand over one frame per subscriber that has something in it, and start anew."""
        if self._columns:
            frames = {name: columns.frame() for name, columns in self._columns.items()}
            self._columns.clear()
            deliver(frames)
