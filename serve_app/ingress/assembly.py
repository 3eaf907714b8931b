"""One stream's tokens put together to what the client reads: text, and log probabilities with it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from serve_app.api.reply import TokenLogprob
from serve_app.ingress.detokenizer import Detokenizer, TokenTable
from serve_app.ingress.stop_strings import StopMatcher, StopStrings
from serve_app.messages.generation import TokenLogprobs

__all__ = ["Delta", "StreamAssembly"]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the reply that is ready to be sent.

    Attributes:
        text: never a part of a character or of a stop string; "" at most in the last delta.
        logprobs: the tokens whose text begins in this piece, or None if nobody asked.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


class StreamAssembly:
    """Turns one stream's tokens into deltas.

    A token that yields text has its own delta at once. Text that may yet turn out to be part of a
    stop string waits, and a token whose bytes are no whole character goes with the one that
    completes it; their log probabilities wait with them.

    Args:
        table: the model's tokens.
        stops: strings that end the reply, or None.
        logprobs: whether the client asked for log probabilities; each token must bring them then.

    Attributes:
        tokens: tokens that count: all that were fed until the stop string was complete.
    """

    __slots__ = (
        "_decoded",
        "_detokenizer",
        "_entries",
        "_logprobs",
        "_matcher",
        "_sent",
        "_table",
        "tokens",
    )

    def __init__(
        self, table: TokenTable, stops: StopStrings | None = None, *, logprobs: bool = False
    ) -> None:
        self._table = table
        self._detokenizer = Detokenizer(table)
        self._matcher = None if stops is None else StopMatcher(stops)
        self._logprobs = logprobs
        # Entries that wait for their text, each with the offset at which that begins.
        self._entries: deque[tuple[int, TokenLogprob]] = deque()
        self._decoded = 0
        self._sent = 0
        self.tokens = 0

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the reply; the generation can be cancelled once there is one."""
        return None if self._matcher is None else self._matcher.matched

    def feed(self, token: int, logprobs: TokenLogprobs | None = None) -> Delta | None:
        """Take the next token.

        Tokens behind a stop string, which the generator had under way, are dropped.

        Returns:
            What can be sent now, None if that is nothing.
        """
        if self._matcher is not None and self._matcher.matched is not None:
            return None
        self.tokens += 1
        text = self._detokenizer.add(token)
        if self._logprobs:
            if logprobs is None:
                msg = f"token {token} came without the log probabilities that were asked for"
                raise ValueError(msg)
            self._entries.append((self._decoded, self._entry(token, logprobs)))
            self._decoded += len(text)
        if self._matcher is not None and text:
            text = self._matcher.feed(text)
        if not text:
            return None
        if not self._logprobs:
            return Delta(text)
        self._sent += len(text)
        return Delta(text, self._take_entries())

    def finish(self) -> Delta | None:
        """Take note that no more tokens come.

        Returns:
            What was still held back, None if that is nothing.
        """
        text = self._detokenizer.flush()
        if self._matcher is not None:
            text = self._matcher.feed(text) + self._matcher.flush()
        if not self._logprobs:
            return Delta(text) if text else None
        self._sent += len(text)
        entries = self._take_entries()
        if self.stopped_by is None:
            # Tokens at the end that have no text at all.
            entries += tuple(entry for _, entry in self._entries)
        self._entries.clear()
        return Delta(text, entries) if text or entries else None

    def _take_entries(self) -> tuple[TokenLogprob, ...]:
        """Return the entries of tokens whose text begins in what has been sent."""
        taken = []
        while self._entries and self._entries[0][0] < self._sent:
            taken.append(self._entries.popleft()[1])
        return tuple(taken)

    def _entry(self, token: int, logprobs: TokenLogprobs) -> TokenLogprob:
        top = tuple(
            TokenLogprob(*self._table.show(other), logprob) for other, logprob in logprobs.top
        )
        return TokenLogprob(*self._table.show(token), logprobs.chosen, top)
