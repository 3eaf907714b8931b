"""Choosing each sequence's next token from its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import InvalidRequest
from serve_app.generation.penalties import Penalties
from serve_app.generation.truncation import kth_largest, truncate
from serve_app.messages.generation import SamplingParams, TokenLogprobs

__all__ = ["Sampled", "Sampler", "sample"]

# Below this a temperature is greedy, as in vLLM: dividing by less overflows float32.
_COLDEST: Final = 1e-5

_BLOCK: Final = 256
_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Sampled:
    """One token per row.

    Attributes:
        tokens: ids, [n]; without meaning in the rows that are named below.
        logprobs: aligned with `tokens`; None where they weren't asked for.
        broken: rows that were no finite numbers when the model had computed them.
        overflowed: rows that the request's own penalties and biases made infinite.
    """

    tokens: NDArray[np.int64]
    logprobs: list[TokenLogprobs | None]
    broken: frozenset[int] = frozenset()
    overflowed: frozenset[int] = frozenset()


class Sampler:
    """How one sequence chooses its tokens, and where in its output it stands.

    Args:
        params: the request's parameters.
        prompt: token ids of the prompt, for the repetition penalty.
        output: tokens produced so far, here or elsewhere; the next one is chosen as if this very
            sampler had chosen them.
        eos_token_ids: the model's own stop tokens.
        vocab_size: number of logits per row.

    Attributes:
        params: as given.
        position: tokens chosen so far, `output` included.
        stop_token_ids: tokens that end this sequence: the request's own, and the model's unless
            they are to be ignored.
        greedy: whether the likeliest token is taken.

    Raises:
        InvalidRequest: a bias or a stop token lies outside of the vocabulary.
    """

    __slots__ = ("_bias", "_penalties", "_stops", "greedy", "params", "position", "stop_token_ids")

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        output: Sequence[int],
        eos_token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        biased = [token for token, _ in params.logit_bias]
        _check_tokens(biased, vocab_size, "logit_bias")
        _check_tokens(params.stop_token_ids, vocab_size, "stop_token_ids")
        stops = set(params.stop_token_ids)
        if not params.ignore_eos:
            stops.update(token for token in eos_token_ids if 0 <= token < vocab_size)
        self.params = params
        self.position = len(output)
        self.stop_token_ids = frozenset(stops)
        self.greedy = params.temperature < _COLDEST
        self._stops = np.array(sorted(stops), np.int64)
        self._penalties = Penalties(params, prompt, output) if Penalties.wanted(params) else None
        self._bias = (
            (np.array(biased, np.int64), np.array([bias for _, bias in params.logit_bias], "f4"))
            if biased
            else None
        )

    @property
    def edits_logits(self) -> bool:
        """Whether `edit` does anything to the next token's logits."""
        return (
            self._penalties is not None
            or self._bias is not None
            or self.position < self.params.min_tokens
        )

    def edit(self, row: NDArray[np.float32]) -> None:
        """Apply min_tokens, logit_bias and penalties in place.

        Args:
            row: this sequence's logits, [vocab].
        """
        if self.position < self.params.min_tokens:
            row[self._stops] = -np.inf
        if self._bias is not None:
            np.add.at(row, *self._bias)  # `row[tokens] += …` would add once for a token named twice
        if self._penalties is not None:
            self._penalties.apply(row)

    @property
    def stops(self) -> NDArray[np.int64]:
        """The stop tokens, ascending."""
        return self._stops

    @property
    def bias(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens and what is added to their logits; a token may be there twice."""
        return self._bias or (np.empty(0, np.int64), np.empty(0, np.float32))

    @property
    def spoken(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens that the penalties look at, and how often each is in the output; none without penalties."""
        if self._penalties is None:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self._penalties.spoken

    def uniform(self, ahead: int = 0) -> float:
        """Return the random number in [0, 1) that belongs to the next token.

        It is a function of seed and position and nothing else, so that a sequence that moves to
        another replica, or shares its batch with others, goes on as it would have. Source:
        SplitMix64 (Steele, Lea and Flood 2014), started from the mixed seed, because callers hand
        out neighbouring seeds and the plain one lets streams overlap.

        Args:
            ahead: how many tokens after the next one.
        """
        start = _mix(self.params.seed & _MASK)
        place = self.position + ahead + 1
        return (_mix((start + place * _GOLDEN) & _MASK) >> 11) * 2.0**-53

    def advance(self, token: int) -> None:
        """Take note that the token was chosen."""
        self.position += 1
        if self._penalties is not None:
            self._penalties.add(token)


def sample(logits: NDArray[np.float32], samplers: Sequence[Sampler]) -> Sampled:
    """Choose one token per row and move the samplers on by it, except where a row has no token.

    The order is vLLM's: log probabilities are taken from the raw logits; then min_tokens,
    logit_bias, the repetition, frequency and presence penalties; greedy rows take the likeliest
    token; the others go on with temperature, min_p, top_k, top_p and the draw.

    A row's token depends on the row and its sampler alone, to the last bit. For that, and because
    a row stays in the core's cache where the batch doesn't, rows are worked off one by one, each
    step of it vectorised over the vocabulary.

    Args:
        logits: [n, vocab]; may be overwritten.
        samplers: one per row.
    """
    logprobs: list[TokenLogprobs | None] = [None] * len(samplers)
    edited: set[int] = set()
    if all(s.greedy and not s.edits_logits and s.params.logprobs is None for s in samplers):
        tokens = logits.argmax(axis=1)
    else:
        tokens = np.empty(len(samplers), np.int64)
        scratch = np.empty(logits.shape[1], np.float32)
        for place, (row, sampler) in enumerate(zip(logits, samplers, strict=True)):
            wanted = sampler.params.logprobs
            # A broken row stays as it is, so that nobody takes its fault for the request's.
            edits = sampler.edits_logits and math.isfinite(row.max())
            raw = row.copy() if wanted is not None and edits else row
            if edits:
                sampler.edit(row)
                edited.add(place)
            token = int(row.argmax()) if sampler.greedy else _draw(row, sampler, scratch)
            tokens[place] = token
            if wanted is not None and math.isfinite(row[token]):
                logprobs[place] = _logprobs(raw, token, wanted, scratch)
    # A NaN wins every argmax, and makes the row's maximum NaN, so it can't hide from this.
    finite = np.isfinite(logits[np.arange(len(samplers)), tokens])
    failed = frozenset[int]() if finite.all() else frozenset(np.flatnonzero(~finite).tolist())
    for place, (sampler, token) in enumerate(zip(samplers, tokens.tolist(), strict=True)):
        if place not in failed:
            sampler.advance(token)
    return Sampled(tokens, logprobs, broken=failed - edited, overflowed=failed & edited)


def _draw(row: NDArray[np.float32], sampler: Sampler, scratch: NDArray[np.float32]) -> int:
    """Draw from the softmax of what temperature and truncation leave of a row.

    By inverting the cumulative sum in the order of the vocabulary. In the order of likelihood, two
    nearly equal tokens that swap places (another batch size or kernel, one bit of difference)
    would move every boundary between them; in a fixed order a boundary moves as little as the
    probabilities do.
    """
    peak = row.argmax()
    if not math.isfinite(row[peak]):
        return int(peak)  # `sample` finds it
    scaled = np.subtract(row, row[peak], out=scratch)
    np.divide(scaled, np.float32(sampler.params.temperature), out=scaled)
    kept, weights = truncate(scaled, sampler.params)
    place = _invert(weights, sampler.uniform())
    return place if kept is None else int(kept[place])


def _invert(weights: NDArray[np.float32], uniform: float) -> int:
    """Return the place at which the running sum of the weights passes `uniform` of their total."""
    # In two levels: sums of blocks first, then inside of one block, both in float64.
    starts = np.arange(0, weights.size, _BLOCK)
    sums = np.add.reduceat(weights, starts).cumsum(dtype=np.float64)
    target = uniform * float(sums[-1])
    block = _passes(sums, target)
    start = block * _BLOCK
    before = float(sums[block - 1]) if block else 0.0
    inside = weights[start : start + _BLOCK].cumsum(dtype=np.float64)
    return start + _passes(inside, target - before)


def _passes(sums: NDArray[np.float64], target: float) -> int:
    """Return the first place whose sum is above the target, never one of weight zero."""
    last = sums.searchsorted(sums[-1])  # rounding may leave the target at or above the whole sum
    return int(min(sums.searchsorted(target, side="right"), last))


def _logprobs(
    row: NDArray[np.float32], token: int, count: int, scratch: NDArray[np.float32]
) -> TokenLogprobs:
    peak = row.max()
    np.exp(np.subtract(row, peak, out=scratch), out=scratch)
    normaliser = float(peak) + math.log(float(scratch.sum()))
    top: tuple[tuple[int, float], ...] = ()
    if count > 0:
        likeliest = np.flatnonzero(row >= kth_largest(row, min(count, row.size)))
        order = np.argsort(-row[likeliest], kind="stable")[:count]
        likeliest = likeliest[order]
        values = (row[likeliest].astype(np.float64) - normaliser).tolist()
        top = tuple(zip(likeliest.tolist(), values, strict=True))
    return TokenLogprobs(chosen=float(row[token]) - normaliser, top=top)


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def _check_tokens(tokens: Sequence[int], vocab_size: int, param: str) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            msg = f"{param} names token {token}; this model's tokens are 0 to {vocab_size - 1}."
            raise InvalidRequest(msg, param=param)
