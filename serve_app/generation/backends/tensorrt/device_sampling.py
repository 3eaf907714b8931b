"""Choosing tokens where the logits are: the rules of `generation.sampling`, over a whole batch at once.

The draws are the same numbers, inverted over the vocabulary in its own order. Probabilities are summed
as integers: sums of floats would depend on the order in which a GPU adds, and so on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["BROKEN", "OVERFLOWED", "UNSEEN", "Draws", "SlotState", "choose"]

BROKEN = -1
"""Stands for the token of a row whose logits were no finite numbers."""

OVERFLOWED = -2
"""Stands for the token of a row that the request's own penalties and biases made infinite."""

UNSEEN = -1
"""Stands for the count of a token that is neither in the prompt nor in the output."""

# The likeliest token's weight. 2^18 of them fit an int64.
_WHOLE = float(1 << 44)


@dataclass(frozen=True, slots=True, eq=False)
class SlotState:
    """What of a sequence's choices outlasts a step, by slot.

    Attributes:
        newest: the last token, int64 [slots].
        bias: added to logits, float32 [slots, vocab].
        counts: how often a token is in the output, or `UNSEEN`, int32 [slots, vocab].
        stops: whether it ends the sequence, bool [slots, vocab].
    """

    newest: torch.Tensor
    bias: torch.Tensor
    counts: torch.Tensor
    stops: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """How each row of a step chooses, on the device.

    Attributes:
        floats: float64 [8, n], in the rows temperature (0 for the likeliest token), top_p, min_p, the
            repetition, frequency and presence penalties, the random number, and whether stop tokens
            are barred.
        top_k: int64 [n]; 0 keeps all.
        edited: whether any row has biases, penalties or barred tokens.
        truncated: whether any row has top_k or top_p.
        drawn: whether any row is drawn at random.
    """

    floats: torch.Tensor
    top_k: torch.Tensor
    edited: bool
    truncated: bool
    drawn: bool


def choose(logits: torch.Tensor, state: SlotState, draws: Draws) -> torch.Tensor:
    """Choose a token per row, and take note of it in the state.

    Args:
        logits: float32 [n, vocab], of the slots 0 to n - 1.
        state: of all slots.
        draws: of these rows.

    Returns:
        Tokens, int64 [n], or `BROKEN` or `OVERFLOWED`.
    """
    batch = len(logits)
    temperature, top_p, min_p, repetition, frequency, presence, uniform, barred = draws.floats[
        :, :batch
    ]
    # A NaN is the largest of all here, so it can't hide.
    broken = ~logits.amax(dim=1).isfinite()
    if draws.edited:
        stops = state.stops[:batch] & (barred > 0).unsqueeze(1)
        logits = _penalized(
            logits.masked_fill(stops, -torch.inf) + state.bias[:batch],
            state.counts[:batch],
            *(rates.float().unsqueeze(1) for rates in (repetition, frequency, presence)),
        )
    peak, tokens = logits.max(dim=1)
    overflowed = ~peak.isfinite()
    if draws.drawn:
        heat = torch.where(temperature > 0, temperature, 1.0).float().unsqueeze(1)
        scaled = (logits - peak.unsqueeze(1)) / heat
        floor = min_p.log().float()
        if draws.truncated:
            floor = _truncated(scaled, floor, top_p, draws.top_k[:batch])
        drawn = _invert(scaled, floor, uniform)
        tokens = torch.where(temperature > 0, drawn, tokens)
    bad = broken | overflowed
    state.newest[:batch] = torch.where(bad, 0, tokens)
    if draws.edited:
        _count(state.counts[:batch], tokens)
    return torch.where(broken, BROKEN, torch.where(overflowed, OVERFLOWED, tokens))


def _penalized(
    logits: torch.Tensor,
    counts: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where((counts != UNSEEN) & (repetition != 1), repeated, logits)
    spoken = counts.clamp(min=0)
    return logits - frequency * spoken - presence * (spoken > 0)


def _truncated(
    scaled: torch.Tensor, floor: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor
) -> torch.Tensor:
    """Return the least scaled logit that stays, of each row, after min_p, top_k and top_p in turn."""
    ordered = scaled.sort(dim=1, descending=True).values
    ranks = torch.where(top_k > 0, top_k, ordered.shape[1]).clamp(max=ordered.shape[1])
    floor = torch.maximum(floor, ordered.gather(1, ranks.unsqueeze(1) - 1).squeeze(1))
    masses = _weights(ordered, floor).cumsum(dim=1)
    target = (top_p * masses[:, -1].double()).long().unsqueeze(1)
    places = (masses < target).sum(dim=1, keepdim=True).clamp(max=ordered.shape[1] - 1)
    nucleus = ordered.gather(1, places).squeeze(1)
    return torch.where(top_p < 1, torch.maximum(floor, nucleus), floor)


def _weights(scaled: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """Return probabilities as integers, int64 [n, vocab], up to a common factor."""
    weights = (scaled.double().exp() * _WHOLE).long()
    return weights.masked_fill(scaled < floor.unsqueeze(1), 0)


def _invert(scaled: torch.Tensor, floor: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the token at which the running sum of weights passes `uniform` of their total."""
    sums = _weights(scaled, floor).cumsum(dim=1)
    total = sums[:, -1]
    target = torch.minimum((uniform * total.double()).long(), total - 1)
    # A row of NaN has no such token; it is broken, and any will do.
    return (sums <= target.unsqueeze(1)).sum(dim=1).clamp(max=scaled.shape[1] - 1)


def _count(counts: torch.Tensor, tokens: torch.Tensor) -> None:
    chosen = tokens.unsqueeze(1)
    counts.scatter_(1, chosen, counts.gather(1, chosen).clamp(min=0) + 1)
