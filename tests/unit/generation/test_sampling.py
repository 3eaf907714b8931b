from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import RepetitionPenaltyLogitsProcessor

from serve_app.errors import InvalidRequest
from serve_app.generation.sampling import Sampler, _invert, sample
from serve_app.messages.generation import SamplingParams, TokenLogprobs

VOCAB = 3001  # odd, so that rows of a batch differ in their alignment
EOS = 7


def params(**changes: Any) -> SamplingParams:
    return replace(SamplingParams(max_tokens=1000, seed=11), **changes)


def sampler(
    prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), **changes: Any
) -> Sampler:
    return Sampler(params(**changes), prompt, output, (EOS,), VOCAB)


def logits_at(step: int, vocab: int = VOCAB) -> NDArray[np.float32]:
    return np.random.default_rng(step).normal(0, 3, vocab).astype(np.float32)


def choose(row: NDArray[np.float32], one: Sampler) -> int:
    return int(sample(row[None].copy(), [one]).tokens[0])


def generate(one: Sampler, steps: range) -> list[int]:
    return [choose(logits_at(step), one) for step in steps]


VARIETY: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.4, "top_p": 0.99},
    {"top_k": 40},
    {"top_k": 2000, "min_p": 1e-4},
    {"min_p": 0.1},
    {"top_k": 100, "top_p": 0.8, "min_p": 0.001},
    {"frequency_penalty": 0.8, "presence_penalty": 0.3},
    {"repetition_penalty": 0.8, "top_p": 0.95},
    {"logit_bias": ((5, 100.0), (6, -100.0))},
    {"min_tokens": 5},
    {"logprobs": 5},
    {"temperature": 0.0, "logprobs": 0},
    {"temperature": 0.5, "repetition_penalty": 1.1, "logprobs": 3, "seed": 2**63 + 1},
]


def test_a_seeded_sequence_is_the_same_alone_and_in_a_batch_of_16() -> None:
    steps = range(20)
    alone = []
    for row, changes in enumerate(VARIETY):
        one = sampler(**changes)
        alone.append([choose(logits_at(100 * row + step), one) for step in steps])

    together = [sampler(**changes) for changes in VARIETY]
    batched: list[list[int]] = [[] for _ in VARIETY]
    for step in steps:
        logits = np.stack([logits_at(100 * row + step) for row in range(len(VARIETY))])
        for tokens, token in zip(batched, sample(logits, together).tokens, strict=True):
            tokens.append(int(token))
    assert batched == alone


@pytest.mark.parametrize("changes", VARIETY)
def test_a_sequence_resumed_elsewhere_goes_on_as_it_would_have(changes: dict[str, Any]) -> None:
    whole = generate(sampler(**changes), range(24))
    resumed = generate(sampler(output=tuple(whole[:9]), **changes), range(9, 24))
    assert whole[9:] == resumed


def test_seeds_make_different_sequences_and_the_same_seed_the_same_one() -> None:
    texts = [tuple(generate(sampler(seed=seed), range(8))) for seed in (1, 2, 2**64 - 1, -1, 1)]
    assert texts[0] == texts[4]
    assert texts[2] == texts[3]  # two's complement of one 64-bit word
    assert len(set(texts)) == 3


def test_uniforms_are_uniform_and_independent_over_positions_and_seeds() -> None:
    draws = np.array(
        [
            [Sampler(params(seed=seed), (1,), (0,) * k, (), 9).uniform() for k in range(100)]
            for seed in range(100)
        ]
    )
    assert (draws >= 0).all()
    assert (draws < 1).all()
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 85.4  # chi-square, 49 degrees, p = 0.001
    for first, second in ((draws[:, :-1], draws[:, 1:]), (draws[:-1], draws[1:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.04


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.6}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1}]
)
def test_tokens_come_as_often_as_their_probabilities_say(changes: dict[str, Any]) -> None:
    vocab, draws = 600, 6000
    row = np.full(vocab, -20.0, np.float32)
    row[::50] = np.linspace(-1, 1.5, 12)  # spread over several blocks of the cumulative sum
    one = Sampler(params(**changes), (1,), (), (), vocab)
    counts = np.bincount([choose(row, one) for _ in range(draws)], minlength=vocab)

    # The straightforward way, over the whole sorted distribution.
    probabilities = np.exp(row.astype(np.float64) / one.params.temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    rank = np.empty(vocab, int)
    rank[order] = np.arange(vocab)
    before = (np.cumsum(probabilities[order]) - probabilities[order])[rank]
    kept = before < one.params.top_p
    kept &= rank < (one.params.top_k or vocab)
    kept &= probabilities >= one.params.min_p * probabilities.max()
    probabilities = np.where(kept, probabilities, 0)
    probabilities /= probabilities.sum()

    assert counts[probabilities == 0].sum() == 0
    expected = draws * probabilities
    tested = expected > 5
    chi_square = ((counts - expected)[tested] ** 2 / expected[tested]).sum()
    # p = 0.001 for 11 degrees of freedom; with fewer the bound is merely loose.
    assert chi_square < 31.3


def test_a_draw_hardly_notices_rounding_of_the_logits() -> None:
    # Plenty of near ties, which a sum in the order of likelihood would shuffle.
    noise = np.random.default_rng(1)
    changed = 0
    for step in range(300):
        row = np.round(logits_at(step), 1)
        nearly = row + noise.uniform(-1e-6, 1e-6, VOCAB).astype(np.float32)
        changed += choose(row, sampler(seed=step)) != choose(nearly, sampler(seed=step))
    assert changed <= 1


def test_a_row_of_equal_logits_reaches_every_token() -> None:
    one = Sampler(params(), (1,), (), (), 300)
    assert {choose(np.zeros(300, np.float32), one) for _ in range(4000)} == set(range(300))


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    row = logits_at(0)
    row[[40, 30]] = 50.0
    assert choose(row, sampler(temperature=0.0)) == 30
    assert choose(row, sampler(temperature=1e-30)) == 30
    assert choose(row, sampler(temperature=0.0, top_p=0.1, top_k=3)) == 30


def test_greedy_rows_among_others_stay_greedy() -> None:
    logits = np.stack([logits_at(step) for step in range(3)])
    likeliest = logits.argmax(axis=1)
    tokens = sample(logits, [sampler(temperature=0.0), sampler(), sampler(temperature=0.0)]).tokens
    assert tokens[[0, 2]].tolist() == likeliest[[0, 2]].tolist()


def test_a_low_temperature_sharpens_and_never_overflows() -> None:
    row = logits_at(0) * 1000
    assert choose(row, sampler(temperature=2e-5)) == row.argmax()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_100_forces_and_one_of_minus_100_bans(temperature: float) -> None:
    row = logits_at(0)
    forced = sampler(temperature=temperature, logit_bias=((42, 100.0),))
    assert {choose(row, forced) for _ in range(50)} == {42}
    favourite = int(row.argmax())
    banned = sampler(temperature=temperature, logit_bias=((favourite, -100.0),))
    assert favourite not in {choose(row, banned) for _ in range(50)}


def test_a_bias_named_twice_counts_twice() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[1] = 1.5
    assert choose(row, sampler(temperature=0.0, logit_bias=((9, 1.0), (9, 1.0)))) == 9


def test_min_tokens_keeps_every_stop_token_out_until_then() -> None:
    row = logits_at(0)
    row[[EOS, 8]] = (60.0, 50.0)
    one = sampler(temperature=0.0, min_tokens=3, stop_token_ids=(8,), logit_bias=((8, 100.0),))
    tokens = [choose(row, one) for _ in range(4)]
    assert not {EOS, 8} & set(tokens[:3])
    assert tokens[3] == 8
    resumed = sampler(temperature=0.0, min_tokens=3, output=(1, 1, 1))
    assert choose(row, resumed) == EOS


def test_min_tokens_lets_an_ignored_eos_through() -> None:
    row = logits_at(0)
    row[EOS] = 60.0
    one = sampler(temperature=0.0, min_tokens=3, ignore_eos=True)
    assert choose(row, one) == EOS
    assert EOS not in one.stop_token_ids
    assert sampler(stop_token_ids=(5,)).stop_token_ids == {5, EOS}


def test_masked_tokens_are_never_drawn() -> None:
    row = np.full(VOCAB, -np.inf, np.float32)
    row[[3, 700, 2999]] = 0.0
    for changes in ({}, {"top_p": 0.9999}, {"top_k": 50}, {"top_k": 2000}, {"min_p": 1e-6}):
        one = sampler(**changes)  # type: ignore[arg-type]
        assert {choose(row, one) for _ in range(60)} == {3, 700, 2999}


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("size", [3, 256, 257, 1000])
def test_even_the_most_extreme_random_number_misses_tokens_of_weight_zero(
    uniform: float, size: int
) -> None:
    weights = np.zeros(size, np.float32)
    weights[size // 2] = 0.1
    assert _invert(weights, uniform) == size // 2


@pytest.mark.parametrize("seed", range(40))
def test_a_draw_at_the_very_end_stays_within_the_weights(seed: int) -> None:
    # In float32 the sum of a block may come out above the sum of its parts in float64.
    weights = np.random.default_rng(seed).uniform(0, 1, 400).astype(np.float32)
    weights[300:] = 0.0
    assert _invert(weights, 1 - 2**-53) == 299


def test_repetition_penalty_equals_that_of_transformers() -> None:
    prompt, output = (1, 2, 3, 3), (2, 9, 9)
    row = logits_at(3)
    mine = row.copy()
    sampler(prompt, output, repetition_penalty=1.4).edit(mine)
    seen = torch.tensor([[*prompt, *output]])
    theirs = RepetitionPenaltyLogitsProcessor(1.4)(seen, torch.from_numpy(row.copy())[None])
    np.testing.assert_allclose(mine, theirs[0].numpy(), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 40), min_size=1, max_size=200),
    output=st.lists(st.integers(0, 150), max_size=150),
    later=st.lists(st.integers(0, 150), max_size=150),
    repetition=st.sampled_from([0.5, 1.0, 1.2]),
    presence=st.sampled_from([-1.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.3, 0.0, 0.4]),
)
def test_penalties_equal_their_definition_after_any_history(
    prompt: list[int],
    output: list[int],
    later: list[int],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    vocab = 160
    row = logits_at(1, vocab)
    one = Sampler(
        params(
            repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
        ),
        prompt,
        output,
        (),
        vocab,
    )
    for token in later:
        one.advance(token)
    produced = output + later
    expected = row.astype(np.float64)
    for token in range(vocab):
        if token in prompt or token in produced:
            expected[token] *= repetition if expected[token] <= 0 else 1 / repetition
        expected[token] -= frequency * produced.count(token) + presence * (token in produced)
    if one.edits_logits:
        one.edit(row)
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


def test_a_penalty_counts_the_tokens_that_were_just_chosen() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[[5, 6, 8]] = (3.0, 2.5, 2.2)
    one = sampler(temperature=0.0, frequency_penalty=0.4, presence_penalty=0.2)
    assert [choose(row, one) for _ in range(5)] == [5, 6, 5, 8, 5]


def test_logprobs_are_those_of_the_raw_logits() -> None:
    row = logits_at(5)
    one = sampler(
        temperature=0.3, top_k=3, repetition_penalty=1.5, logit_bias=((9, 100.0),), logprobs=4
    )
    drawn = sample(row[None].copy(), [one])
    expected = torch.log_softmax(torch.from_numpy(row).double(), 0).numpy()
    got = drawn.logprobs[0]
    assert isinstance(got, TokenLogprobs)
    assert drawn.tokens.tolist() == [9]
    assert got.chosen == pytest.approx(expected[9], abs=1e-5)
    assert [token for token, _ in got.top] == np.argsort(-expected)[:4].tolist()
    assert [value for _, value in got.top] == pytest.approx(np.sort(expected)[::-1][:4], abs=1e-5)


def test_the_chosen_tokens_logprob_is_the_one_it_has_among_the_top() -> None:
    got = sample(logits_at(5)[None], [sampler(temperature=0.0, logprobs=1)]).logprobs[0]
    assert got is not None
    assert got.top[0][1] == got.chosen


def test_logprobs_come_only_where_they_were_asked_for() -> None:
    logits = np.stack([logits_at(step) for step in range(3)])
    got = sample(logits, [sampler(), sampler(logprobs=0), sampler(logprobs=20)]).logprobs
    assert got[0] is None
    assert got[1] is not None
    assert got[1].top == ()
    assert got[2] is not None
    assert len(got[2].top) == 20


def test_equal_logits_are_reported_in_the_order_of_the_vocabulary() -> None:
    got = sample(np.zeros((1, VOCAB), np.float32), [sampler(logprobs=3)]).logprobs[0]
    assert got is not None
    assert [token for token, _ in got.top] == [0, 1, 2]


@pytest.mark.parametrize("fault", [np.nan, np.inf])
@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"repetition_penalty": 1.2, "logprobs": 3}],
)
def test_a_row_that_is_not_numbers_is_named_and_the_others_get_their_tokens(
    fault: float, changes: dict[str, Any]
) -> None:
    logits = np.stack([logits_at(0), logits_at(1), logits_at(2)])
    logits[1, 1234] = fault
    samplers = [sampler(**changes) for _ in range(3)]
    sampled = sample(logits, samplers)
    assert (sampled.broken, sampled.overflowed) == ({1}, frozenset())
    assert [one.position for one in samplers] == [1, 0, 1]
    alone = [choose(logits_at(row), sampler(**changes)) for row in (0, 2)]
    assert sampled.tokens[[0, 2]].tolist() == alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_its_own_penalties_make_infinite_is_told_from_a_broken_one(
    temperature: float,
) -> None:
    prompt = tuple(range(VOCAB))
    extreme = sampler(prompt, temperature=temperature, repetition_penalty=1e-39, logprobs=2)
    samplers = [sampler(), extreme, sampler()]
    sampled = sample(np.stack([logits_at(row) for row in range(3)]), samplers)
    assert (sampled.broken, sampled.overflowed) == (frozenset(), {1})
    assert [one.position for one in samplers] == [1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"logit_bias": ((VOCAB, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias"),
        ({"stop_token_ids": (5, VOCAB)}, "stop_token_ids"),
    ],
)
def test_a_token_outside_of_the_vocabulary_is_refused_by_name(
    changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest, match=str(VOCAB - 1)) as caught:
        sampler(**changes)
    assert caught.value.param == param
