"""Ingress → Generator: a request in tokens, and the frames that come back.

One *stream* is one sequence being generated. A *subscriber* is an ingress replica: it numbers its
streams itself and receives, from each generator replica that works for it, one `Frame` per engine
step with the tokens of all its streams there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.telemetry.origin import Origin

__all__ = [
    "Admitted",
    "Begun",
    "FinishReason",
    "Finished",
    "Frame",
    "GenerateRequest",
    "Room",
    "SamplingParams",
    "TokenLogprobs",
]


class FinishReason(StrEnum):
    """Why a stream ended.

    HANDED_BACK is the end of its time at one replica and not of the reply: that replica stops, and
    whoever submitted the stream lets it go on elsewhere.
    """

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"
    HANDED_BACK = "handed_back"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen, and when the stream ends.

    Attributes:
        max_tokens: most new tokens, at least 1.
        min_tokens: stop tokens are not sampled before this many new tokens.
        temperature: 0 means greedy.
        top_p: nucleus mass in (0, 1].
        top_k: keep the k most likely tokens; 0 keeps all.
        min_p: drop tokens less likely than min_p times the likeliest.
        repetition_penalty: divides (positive) or multiplies (negative) logits of tokens seen in
            the prompt or the output; 1 does nothing. Source: Keskar et al. 2019 (CTRL).
        presence_penalty: subtracted once from logits of tokens in the output.
        frequency_penalty: subtracted once per occurrence in the output.
        logit_bias: (token, bias) pairs added to the logits.
        seed: 64-bit seed of this stream's own generator; the caller always sets one.
        stop_token_ids: tokens that end the stream; the stop token itself is not reported.
        ignore_eos: generate through `eos_token_ids`; `stop_token_ids` still end the stream.
        logprobs: None for none, else how many alternatives to report beside the chosen token.
    """

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One stream to generate.

    Attributes:
        request_id: names the stream in logs, cancellation and errors; unique.
        subscriber: the ingress replica that receives the frames.
        stream: the subscriber's own number for this stream.
        prompt: token ids, at least one.
        sampling: how to choose tokens and when to stop.
        output: tokens already produced elsewhere; generation goes on behind them as if it had
            never been interrupted.
        priority: lower goes first; first come first served within one priority.
        timeout_s: seconds from submission after which the stream ends with DEADLINE; None for none.
        affinity: streams with equal keys (a session, a persona) like the same replica.
        moves: how often the stream has gone from one replica to another. One that has moved is part of
            a reply that somebody is reading: it goes before those that wait, and no full queue
            refuses it.
        origin: what it is done for, in logs and traces.
    """

    request_id: str
    subscriber: str
    stream: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    output: tuple[int, ...] = ()
    priority: int = 0
    timeout_s: float | None = None
    affinity: str | None = None
    moves: int = 0
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities at one position, before temperature and truncation.

    Attributes:
        chosen: natural log of the chosen token's probability.
        top: (token, logprob) pairs of the likeliest tokens, likeliest first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """A reply's first token has come: what is known from then on, should the replica be lost.

    Attributes:
        stream: the subscriber's number.
        cached_tokens: prompt tokens that came from the prefix cache.
        queue_s: seconds from submission to admission into a slot.
        prefill_s: seconds from admission to the first token.
    """

    stream: int
    cached_tokens: int
    queue_s: float
    prefill_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a stream, with what it cost.

    Attributes:
        stream: the subscriber's number.
        reason: why it ended.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them came from the prefix cache.
        completion_tokens: tokens reported.
        queue_s: seconds from submission to admission into a slot.
        prefill_s: seconds from admission to the first token.
        decode_s: seconds from the first token to the last.
        error_code: the stable code when `reason` is ERROR, or HANDED_BACK by a replica that failed.
        error_message: the sentence when `reason` is ERROR.
    """

    stream: int
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What a generator replica takes, as one subscriber is told.

    Attributes:
        places: most streams that may be there at once, those that wait included.
        others: streams there that aren't the subscriber's own, which it counts itself.
        drain_s: seconds until all that waits now is worked off.
    """

    places: int
    others: int
    drain_s: float


@dataclass(frozen=True, slots=True)
class Frame:
    """What one engine step produced for one subscriber, in columns; several steps, where it is behind.

    Attributes:
        streams: stream numbers, one per token; a stream may appear more than once, in order.
        tokens: token ids, aligned with `streams`.
        logprobs: aligned with `streams` where any stream asked for them, else None.
        finished: the streams that ended in this frame; their last tokens, if any, are in it.
        begun: the streams whose reply's first token is in this frame; not those that go on here.
        room: how full the replica is, every now and then.
    """

    streams: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finished: tuple[Finished, ...] = field(default=())
    begun: tuple[Begun, ...] = ()
    room: Room | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The first item of every submission: which replica took the stream.

    Attributes:
        replica: the generator replica's unique id; cancellations are pinned to it.
        carries_frames: True when this very call goes on to carry the subscriber's frames, False
            when another open call of the subscriber to the replica already does.
    """

    replica: str
    carries_frames: bool
