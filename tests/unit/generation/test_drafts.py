"""Guesses of what comes next: where they are looked for, when they are made, and that they change nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from engine_driver import Listener, config, request
from hypothesis import given
from hypothesis import strategies as st

from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.drafts import Drafter, Lookup
from serve_app.generation.engine_core import EngineCore
from serve_app.generation.pace import Pace
from serve_app.generation.sampling import Sampler
from serve_app.generation.sequence import Sequence
from serve_app.messages.generation import FinishReason, GenerateRequest


def followed(tokens: list[int], known: int = 1) -> Lookup:
    """Return the lookup of a sequence whose tokens came one by one behind the `known` first ones."""
    lookup = Lookup()
    for length in range(known, len(tokens) + 1):
        lookup.follow(np.array(tokens[:length]))
    return lookup


def guess(tokens: list[int], count: int, known: int = 1) -> list[int]:
    lookup = followed(tokens, known)
    return lookup.guess(np.array(tokens), count).tolist() if lookup.matched else []


def test_what_stood_behind_the_newest_tokens_before_is_the_guess() -> None:
    assert guess([1, 2, 3, 4, 5, 9, 1, 2], 3) == [3, 4, 5]
    assert followed([1, 2, 3, 4, 5, 9, 1, 2]).matched == 2


def test_one_token_that_came_before_is_no_match() -> None:
    assert guess([1, 2, 3, 4, 2], 3) == []


@pytest.mark.parametrize("tokens", [[1], [1, 1], [1, 2], [1, 2, 3]])
def test_a_sequence_without_repetition_has_no_guess(tokens: list[int]) -> None:
    assert guess(tokens, 3) == []


def test_the_longest_match_is_taken_and_among_equal_ones_the_newest() -> None:
    assert guess([7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2], 1, known=11) == [30]
    assert guess([6, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2], 1, known=11) == [40]


def test_a_guess_longer_than_what_is_repeated_goes_round() -> None:
    assert guess([9, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert guess([9, 5, 5, 5], 3) == [5, 5, 5]


def test_a_match_is_followed_for_as_long_as_it_holds() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 4]
    lookup = followed(tokens, known=9)
    assert lookup.matched == 4
    assert lookup.guess(np.array(tokens), 2).tolist() == [5, 6]
    assert lookup.follow(np.array([*tokens, 5])) is True
    assert lookup.follow(np.array([*tokens, 5, 8])) is False
    assert lookup.matched == 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 8))
def test_a_guess_is_what_followed_the_same_tokens_before(tokens: list[int], count: int) -> None:
    lookup = followed(tokens)
    if not lookup.matched:
        pairs = list(itertools.pairwise(tokens))
        assert pairs[-1:] == [] or pairs[-1] not in pairs[:-1]
        return
    guessed = lookup.guess(np.array(tokens), count).tolist()
    whole = tokens + guessed
    newest = tokens[-lookup.matched :]
    places = [
        start + lookup.matched
        for start in range(len(tokens) - lookup.matched)
        if tokens[start : start + lookup.matched] == newest
    ]
    assert any(whole[place : place + count] == guessed for place in places)


def taught(right: int, wrong: int, *, most: int = 8, most_rows: int = 16) -> Drafter:
    """Return a drafter that has seen guesses behind three matched tokens."""
    drafter = Drafter(most=most, most_rows=most_rows)
    for newest in [4] * right + [8] * wrong:
        tokens = [1, 2, 3, 4, 9, 1, 2, 3]
        drafter.follow(followed(tokens, known=8), np.array([*tokens, newest]))
    return drafter


def test_nothing_is_guessed_before_a_guess_would_have_been_right() -> None:
    assert Drafter(most=8, most_rows=16).counts([(3, 9)], least_chance=0.0) == [0]
    assert taught(0, 50).counts([(3, 9)], least_chance=0.0) == [0]
    assert taught(9, 0).counts([(3, 9)], least_chance=0.0) == [1]  # none was seen behind four


def test_chances_are_those_of_the_length_of_the_match() -> None:
    drafter = taught(30, 10)
    assert drafter.chance(3) == pytest.approx(0.75, abs=0.15)
    assert drafter.chance(4) == 0.0


def test_chances_forget() -> None:
    drafter = taught(400, 0)
    assert drafter.chance(3) > 0.97
    for _ in range(200):
        tokens = [1, 2, 3, 4, 9, 1, 2, 3]
        drafter.follow(followed(tokens, known=8), np.array([*tokens, 8]))
    assert drafter.chance(3) < 0.05


def test_a_guess_is_made_where_its_chance_is_worth_the_row() -> None:
    drafter = taught(30, 10)
    assert drafter.counts([(3, 9)], least_chance=0.5) == [1]
    assert drafter.counts([(3, 9)], least_chance=0.95) == [0]


def loving() -> Drafter:
    """Return a drafter whose guesses were right for long, behind matches of every length."""
    drafter = Drafter(most=8, most_rows=16)
    lookup = Lookup()
    for length in range(3, 400):
        drafter.follow(lookup, np.tile([1, 2], 200)[:length])
    for matched in range(2, 16):
        for _ in range(400):
            tokens = [9, *range(100, 100 + matched), 50, 8, *range(100, 100 + matched)]
            drafter.follow(followed(tokens, known=len(tokens)), np.array([*tokens, 50]))
    return drafter


def test_guesses_stop_at_the_most_at_the_room_and_at_the_rows_of_a_step() -> None:
    drafter = loving()
    assert drafter.counts([(16, 99)], least_chance=0.0) == [8]
    assert drafter.counts([(16, 3), (16, 0), (16, -1)], least_chance=0.0) == [3, 0, 0]
    assert drafter.counts([(0, 99), (16, 99)], least_chance=0.0) == [0, 8]
    assert sum(drafter.counts([(16, 99)] * 5, least_chance=0.0)) == 16
    assert max(drafter.counts([(16, 99)] * 16, least_chance=0.0)) <= 2


@pytest.mark.parametrize(("most", "most_rows"), [(0, 16), (8, 0)])
def test_a_drafter_without_rows_is_idle(most: int, most_rows: int) -> None:
    assert Drafter(most=most, most_rows=most_rows).idle
    assert not Drafter(most=1, most_rows=1).idle


def test_a_row_is_worth_more_where_a_step_costs_much_by_itself() -> None:
    pace = Pace(2.5)
    assert pace.worthwhile(decoding=1, prompt_tokens=0) == 0.0
    for decoding in [1, 2, 5, 9, 20, 32] * 20:
        pace.observe(0.006 + 0.001 * decoding, decoding=decoding, prompt_tokens=0)
    assert pace.worthwhile(decoding=1, prompt_tokens=0) == pytest.approx(1 / 7, rel=0.05)
    assert pace.worthwhile(decoding=32, prompt_tokens=0) == pytest.approx(32 / 38, rel=0.05)


def test_a_draft_costs_a_step_what_a_sequence_does() -> None:
    pace = Pace(2.5)
    for drafted in [0, 8, 3, 5] * 30:
        pace.observe(0.006 + 0.001 * (1 + drafted), decoding=1, prompt_tokens=0, drafted=drafted)
    assert pace.worthwhile(decoding=1, prompt_tokens=0) == pytest.approx(1 / 7, rel=0.05)


class _Talkative(SimulatedBackend):
    """Knows six tokens, so that everything has been said before, and counts what it computes."""

    def __init__(self) -> None:
        super().__init__(vocab_size=6)
        self.steps = 0
        self.drafts: list[int] = []
        self.beside_prompts = 0

    def step(self, prompts: Any, tokens: Any, lengths: Any, drafts: Any = ()) -> Any:
        self.steps += 1
        self.beside_prompts += bool(prompts and drafts)
        self.drafts += [len(piece.tokens) for piece in drafts]
        for piece in drafts:
            assert piece.start == lengths[piece.slot] + 1
        return super().step(prompts, tokens, lengths, drafts)


def spoken(
    asked: list[GenerateRequest], *, eos: tuple[int, ...] = (), **limits: Any
) -> tuple[Listener, EngineCore, _Talkative]:
    """Run requests to their ends, step by step."""
    backend, listener = _Talkative(), Listener()
    core = EngineCore(backend, config(**limits), listener.deliver)
    for each in asked:
        params = each.sampling
        core.add(
            Sequence(
                request=each,
                arrival=each.stream,
                sampler=Sampler(params, each.prompt, each.output, eos, backend.vocab_size),
                reserved=min(len(each.prompt) + params.max_tokens, 128),
                submitted_at=0.0,
            )
        )
    left = len(asked)
    for _ in range(3000):
        core.step()
        assert core.failure is None
        left -= len(core.flush())
        if not left:
            return listener, core, backend
    pytest.fail("these streams never end")


@pytest.fixture
def rows_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have guesses made wherever there is the least chance, so that some are right and some wrong."""
    monkeypatch.setattr(Pace, "worthwhile", lambda *_, **__: 0.0)


CHOICES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "seed": 4, "top_k": 3, "frequency_penalty": 0.4, "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 1.3, "min_tokens": 20, "logprobs": 0},
]


@pytest.mark.usefixtures("rows_are_free")
def test_replies_are_the_same_with_guesses_and_without() -> None:
    asked = [
        request((1, 2, 3, 1, 2, number % 6), max_tokens=90 - number, **CHOICES[number % 4])
        for number in range(12)
    ]
    limits = {"slots": 3, "max_cached_tokens": 400}
    without, _, plain = spoken(asked, **limits)
    with_guesses, core, backend = spoken(asked, draft_tokens=8, **limits)
    assert with_guesses.tokens == without.tokens
    assert with_guesses.logprobs == without.logprobs
    assert plain.drafts == []
    assert core.drafted == sum(backend.drafts) > core.draft_hits > 50
    assert backend.steps < plain.steps
    assert core.generated == sum(map(len, without.tokens.values()))


@pytest.mark.usefixtures("rows_are_free")
def test_nothing_is_guessed_while_prompts_wait() -> None:
    talk = request((1, 2, 3, 1, 2, 3), max_tokens=100)
    long = request((1, 2) * 45, max_tokens=1)
    _, core, backend = spoken([talk, long], draft_tokens=8, prefill_chunk=3, prefix_cache_bytes=0)
    assert core.prefilled >= 89
    assert backend.drafts
    assert backend.beside_prompts <= 1  # beside the last of them, behind which none waits


@pytest.mark.usefixtures("rows_are_free")
@pytest.mark.parametrize("stop", [{}, {"stop_token_ids": (3,), "min_tokens": 30}])
def test_a_reply_ends_where_it_would_have_though_more_had_been_guessed(
    stop: dict[str, Any],
) -> None:
    teacher = [request((1, 2), max_tokens=100) for _ in range(2)]
    asked = [request((5, 4, 5, 4), max_tokens=60 + length, **stop) for length in range(6)]
    without, _, _ = spoken([*teacher, *asked])
    with_guesses, core, _ = spoken([*teacher, *asked], draft_tokens=8)
    assert core.draft_hits > 0
    for each in asked:
        assert with_guesses.tokens[each.stream] == without.tokens[each.stream]
        ours, theirs = with_guesses.finished[each.stream], without.finished[each.stream]
        assert (ours.reason, ours.completion_tokens) == (theirs.reason, theirs.completion_tokens)
        assert ours.reason is (FinishReason.STOP if stop else FinishReason.LENGTH)


@pytest.mark.usefixtures("rows_are_free")
def test_the_prefix_cache_keeps_no_guess() -> None:
    first = request((1, 2, 3, 4), max_tokens=80)
    listener, core, _ = spoken([first], draft_tokens=8, prefix_cache_bytes=8 * 8 * 32)
    assert core.draft_hits < core.drafted
    told = (*first.prompt, *listener.tokens[first.stream])
    again = request((*told, 5), max_tokens=20)
    both, core, _ = spoken([first, again], draft_tokens=8, slots=1, prefix_cache_bytes=8 * 8 * 32)
    assert core.prefix_hits > 70
    alone, _, _ = spoken([again], prefix_cache_bytes=0)
    assert both.tokens[again.stream] == alone.tokens[again.stream]


def test_a_backend_that_takes_no_drafts_gets_none() -> None:
    class Plain(_Talkative):
        def __init__(self) -> None:
            super().__init__()
            self.draft_rows = 0

    backend = Plain()
    core = EngineCore(backend, config(draft_tokens=8), Listener().deliver)
    sampler = Sampler(request().sampling, (1, 2), (), (), 6)
    asked = request((1, 2), max_tokens=100)
    core.add(Sequence(asked, arrival=0, sampler=sampler, reserved=102, submitted_at=0.0))
    while not core.flush():
        core.step()
        assert core.failure is None
    assert (backend.drafts, core.generated) == ([], 100)
