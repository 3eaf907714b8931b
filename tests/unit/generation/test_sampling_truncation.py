from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serve_app.generation.truncation import kth_largest, truncate
from serve_app.messages.generation import SamplingParams

Row = NDArray[np.float32]


def scale(row: Row, temperature: float) -> Row:
    return (row - row.max()) / np.float32(temperature)


def kept_tokens(row: Row, params: SamplingParams) -> set[int]:
    kept, weights = truncate(scale(row, params.temperature), params)
    tokens = np.arange(row.size) if kept is None else kept
    assert tokens.size == weights.size
    assert (np.diff(tokens) > 0).all()
    return set(tokens.tolist())


def nucleus_faults(probabilities: NDArray[np.float64], kept: set[int], top_p: float) -> list[str]:
    """Hold a kept set against the definition, with room for float32's rounding."""
    inside = np.zeros(probabilities.size, bool)
    inside[list(kept)] = True
    least = probabilities[inside].min()
    faults = []
    if probabilities[~inside].max(initial=0.0) >= least:
        faults.append("a token outside is as likely as one inside")
    if probabilities[inside].sum() < top_p - 1e-5:
        faults.append("the mass is too small")
    if probabilities[inside & (probabilities > least)].sum() >= top_p + 1e-5:
        faults.append("fewer tokens would have done")
    return faults


rows = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.builds(
        lambda size, spread, step: (
            # Rounding to a step makes ties, as quantized logits have them.
            np.round(np.random.default_rng(seed).normal(0, spread, size) / step) * step
        ).astype(np.float32),
        size=st.sampled_from([1, 2, 63, 64, 65, 1000, 5000]),
        spread=st.sampled_from([0.01, 1.0, 5.0, 40.0]),
        step=st.sampled_from([1e-6, 0.25, 3.0]),
    )
)


@settings(max_examples=150, deadline=None)
@given(rows, st.floats(0.001, 0.999999), st.floats(0.05, 3.0))
@example(np.zeros(100, np.float32), 1 - 2**-53, 1.0)
def test_top_p_keeps_the_smallest_set_of_likeliest_tokens(
    row: Row, top_p: float, temperature: float
) -> None:
    params = SamplingParams(max_tokens=1, seed=0, temperature=temperature, top_p=top_p)
    kept = kept_tokens(row, params)
    weights = np.exp(scale(row, temperature).astype(np.float64))
    assert nucleus_faults(weights / weights.sum(), kept, top_p) == []


@settings(max_examples=150, deadline=None)
@given(rows, st.data())
def test_kth_largest_is_what_a_sort_finds(row: Row, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, row.size))
    assert kth_largest(row, k) == np.sort(row)[-k]


@settings(max_examples=100, deadline=None)
@given(
    row=rows,
    top_k=st.sampled_from([0, 1, 2, 40, 900, 10**6]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    top_p=st.sampled_from([0.1, 0.6, 0.95, 1.0]),
)
def test_min_p_top_k_and_top_p_apply_in_turn(
    row: Row, top_k: int, min_p: float, top_p: float
) -> None:
    params = SamplingParams(max_tokens=1, seed=0, top_k=top_k, min_p=min_p, top_p=top_p)
    kept = kept_tokens(row, params)

    scaled = scale(row, 1.0)
    floor = np.float32(math.log(min_p)) if min_p else np.float32(-np.inf)
    if 0 < top_k < row.size:
        floor = max(floor, np.sort(scaled)[-top_k])
    weights = np.where(scaled >= floor, np.exp(scaled.astype(np.float64)), 0.0)
    if top_p == 1.0:
        assert kept == set(np.flatnonzero(scaled >= floor).tolist())
    else:
        assert nucleus_faults(weights / weights.sum(), kept, top_p) == []


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("seed", range(5))
def test_truncation_equals_the_warpers_of_transformers(temperature: float, seed: int) -> None:
    row = np.random.default_rng(seed).normal(0, 3, 8192).astype(np.float32)
    scores = torch.from_numpy(row.copy())[None]
    ids = torch.zeros((1, 1), dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(ids, scores)

    def theirs(*warpers: object) -> set[int]:
        warped = scores
        for warper in warpers:
            warped = warper(ids, warped)  # type: ignore[operator]
        return set(torch.isfinite(warped[0]).nonzero()[:, 0].tolist())

    def ours(**truncation: float) -> set[int]:
        return kept_tokens(
            row, SamplingParams(max_tokens=1, seed=0, temperature=temperature, **truncation)
        )

    assert ours(top_k=50) == theirs(TopKLogitsWarper(50))
    assert ours(top_p=0.9) == theirs(TopPLogitsWarper(0.9))
    assert ours(min_p=0.05) == theirs(MinPLogitsWarper(0.05))
    assert ours(min_p=0.01, top_k=200, top_p=0.8) == theirs(
        MinPLogitsWarper(0.01), TopKLogitsWarper(200), TopPLogitsWarper(0.8)
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_top_p_next_to_one_leaves_nothing_of_weight_out(seed: int) -> None:
    # Here the sum in float32 may come out above the one in float64.
    row = np.random.default_rng(seed).normal(0, 1, 3000).astype(np.float32)
    params = SamplingParams(max_tokens=1, seed=0, top_p=1 - 2**-53)
    assert len(kept_tokens(row, params)) > 2990


def test_a_masked_token_is_never_kept_by_a_truncation() -> None:
    row = np.zeros(500, np.float32)
    row[::2] = -np.inf
    for truncation in ({"top_p": 0.999999}, {"top_k": 400, "top_p": 0.999}, {"min_p": 1e-9}):
        params = SamplingParams(max_tokens=1, seed=0, **truncation)  # type: ignore[arg-type]
        kept, weights = truncate(scale(row, 1.0), params)
        assert kept is not None
        assert all(token % 2 for token in kept[weights > 0])
