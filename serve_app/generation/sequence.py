"""One stream inside of the engine: its tokens, how far they are computed, and its clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve_app.generation.drafts import Lookup
from serve_app.generation.sampling import Sampler
from serve_app.messages.generation import Begun, Finished, FinishReason, GenerateRequest

__all__ = ["Sequence"]


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the engine.

    It is prefilled while `computed < length`; afterwards it decodes, with the newest token known
    and not yet computed.

    Attributes:
        request: what was asked for.
        arrival: number of the submission.
        sampler: chooses its tokens.
        reserved: most tokens it may come to hold: prompt and max_tokens, or the slot's length.
        submitted_at: monotonic seconds, as all times here.
        length: tokens known, prompt and output.
        computed: tokens whose K/V is in the slot.
        cached: prompt tokens that came from the prefix cache.
        slot: where its K/V lies; negative while it has none.
        admitted_at: when it got its slot.
        first_token_at: when its first token was sampled here.
        last_token_at: when its newest token was sampled.
        lookup: where it seems to repeat itself.
    """

    request: GenerateRequest
    arrival: int
    sampler: Sampler
    reserved: int
    submitted_at: float
    length: int = 0
    computed: int = 0
    cached: int = 0
    slot: int = -1
    admitted_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    lookup: Lookup = field(default_factory=Lookup, repr=False)
    _tokens: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = self.request.prompt + self.request.output
        self.length = len(known)
        self._tokens = np.empty(self.reserved, np.int64)
        self._tokens[: self.length] = known

    @property
    def rank(self) -> tuple[int, bool, int]:
        """Order of admission: lower first."""
        return (self.request.priority, not self.request.moves, self.arrival)

    @property
    def running(self) -> bool:
        """Whether it has a slot."""
        return self.slot >= 0

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and output so far, [length]."""
        return self._tokens[: self.length]

    @property
    def newest(self) -> int:
        """The last token."""
        return int(self._tokens[self.length - 1])

    @property
    def uncomputed(self) -> int:
        """Tokens that have yet to be prefilled."""
        return self.length - self.computed

    @property
    def full(self) -> bool:
        """Whether no further token may follow."""
        return self.length >= self.reserved

    def append(self, token: int, now: float) -> None:
        """Take in a sampled token."""
        self._tokens[self.length] = token
        self.length += 1
        self.last_token_at = now
        if self.first_token_at is None:
            self.first_token_at = now

    @property
    def unbegun(self) -> bool:
        """Whether the next token will be the first of the whole reply, here or anywhere."""
        return self.length == len(self.request.prompt)

    def expired(self, now: float) -> bool:
        """Tell whether the request's own time limit has run out."""
        limit = self.request.timeout_s
        return limit is not None and now - self.submitted_at >= limit

    def begun(self, now: float) -> Begun:
        """Return what is known when the reply's first token comes, which is now."""
        admitted = self.submitted_at if self.admitted_at is None else self.admitted_at
        return Begun(
            self.request.stream,
            self.cached,
            queue_s=admitted - self.submitted_at,
            prefill_s=now - admitted,
        )

    def finished(
        self, reason: FinishReason, now: float, *, code: str | None, message: str | None
    ) -> Finished:
        """Return the account of the stream, which ends now.

        A part that the stream never reached takes no time, and the part it ended in lasts till now.
        """
        admitted = now if self.admitted_at is None else self.admitted_at
        first = now if self.first_token_at is None else self.first_token_at
        last = first if self.last_token_at is None else self.last_token_at
        return Finished(
            stream=self.request.stream,
            reason=reason,
            prompt_tokens=len(self.request.prompt),
            cached_tokens=min(self.cached, len(self.request.prompt)),
            completion_tokens=self.length - len(self.request.prompt),
            queue_s=admitted - self.submitted_at,
            prefill_s=first - admitted,
            decode_s=last - first,
            error_code=code,
            error_message=message,
        )
