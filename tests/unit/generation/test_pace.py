"""How much of a step prompts may take while others decode, by what steps have taken so far."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from engine_driver import Listener, config, request
from hypothesis import given
from hypothesis import strategies as st

from serve_app.generation import engine_core
from serve_app.generation.backends import simulated
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.engine_core import EngineCore
from serve_app.generation.pace import Pace
from serve_app.generation.sampling import Sampler
from serve_app.generation.sequence import Sequence
from serve_app.messages.generation import GenerateRequest

SECONDS = st.floats(1e-4, 1.0)


def paced(slowdown: float, *, decode_s: float, token_s: float) -> Pace:
    """Return one that has seen steps of 8 without prompts and with 32 tokens of them."""
    pace = Pace(slowdown)
    for _ in range(50):
        pace.observe(decode_s, decoding=8, prompt_tokens=0)
        pace.observe(decode_s + 32 * token_s, decoding=8, prompt_tokens=32)
    return pace


def test_before_prompts_are_known_to_cost_something_there_is_no_limit():
    pace = Pace(2.0)
    assert pace.prompt_tokens(decoding=1) == math.inf
    pace.observe(0.1, decoding=1, prompt_tokens=0)
    assert pace.prompt_tokens(decoding=1) == math.inf
    pace.observe(0.2, decoding=1, prompt_tokens=40)
    assert pace.prompt_tokens(decoding=1) < math.inf


@given(slowdown=st.floats(1.01, 10.0), decode_s=SECONDS, token_s=SECONDS)
def test_a_step_takes_at_most_the_slowdown_unless_it_holds_the_least(slowdown, decode_s, token_s):
    tokens = paced(slowdown, decode_s=decode_s, token_s=token_s).prompt_tokens(decoding=8)
    assert tokens >= 16
    took = decode_s + tokens * token_s
    assert tokens == 16 or took <= 1.02 * slowdown * decode_s


def test_more_slowdown_is_more_tokens():
    given_s = {"decode_s": 0.1, "token_s": 0.001}
    tokens = [paced(slowdown, **given_s).prompt_tokens(decoding=8) for slowdown in (1.1, 1.5, 2.0)]
    assert tokens == [16, pytest.approx(25, rel=0.01), pytest.approx(50, rel=0.01)]
    assert paced(math.inf, **given_s).prompt_tokens(decoding=8) == math.inf


def test_the_pace_follows_a_machine_that_changes():
    pace = paced(2.0, decode_s=0.1, token_s=0.001)
    for _ in range(200):
        pace.observe(0.2, decoding=8, prompt_tokens=0)
        pace.observe(0.2 + 20 * 0.004, decoding=8, prompt_tokens=20)
    assert pace.prompt_tokens(decoding=8) == pytest.approx(25, rel=0.02)


def test_the_more_decode_the_more_tokens_they_bear_though_no_step_is_without_prompts():
    pace = Pace(2.0)

    def took(decoding: int, tokens: int) -> float:
        return 0.007 + 0.001 * decoding + 0.0003 * tokens

    for _ in range(20):
        pace.observe(took(1, 0), decoding=1, prompt_tokens=0)
    for decoding in [*range(2, 33), *[32] * 100]:
        tokens = int(pace.prompt_tokens(decoding=decoding)) if decoding > 2 else 16
        pace.observe(took(decoding, tokens), decoding=decoding, prompt_tokens=tokens)
    assert pace.prompt_tokens(decoding=32) == pytest.approx(0.5 * 0.039 / 0.0003, rel=0.05)


def test_a_stream_left_alone_for_a_moment_bears_what_all_were_used_to():
    pace = Pace(2.0)
    for _ in range(100):
        pace.observe(0.040, decoding=32, prompt_tokens=0)
        pace.observe(0.060, decoding=32, prompt_tokens=40)
        pace.observe(0.010, decoding=1, prompt_tokens=0)
    alone = pace.prompt_tokens(decoding=1)
    assert alone == pytest.approx((1.5 * 0.040 - 0.010) / 0.0005, rel=0.05)
    assert alone > pace.prompt_tokens(decoding=32)


def test_one_who_decodes_bears_what_all_will_who_are_coming():
    pace = Pace(2.0)
    for _ in range(50):
        for decoding in (1, 1, 1, 1, 8):
            pace.observe(0.008 + 0.001 * decoding, decoding=decoding, prompt_tokens=0)
            pace.observe(0.028 + 0.001 * decoding, decoding=decoding, prompt_tokens=40)
    for coming in (15, 31):
        rest = 2 * (0.009 + 0.001 * coming) - 0.009
        tokens = pace.prompt_tokens(decoding=1, coming=coming)
        assert tokens == pytest.approx(rest / 0.0005, rel=0.05)
    assert pace.prompt_tokens(decoding=1, coming=1) == pace.prompt_tokens(decoding=1)


def test_who_gets_several_tokens_a_step_is_used_to_shorter_waits():
    given_s = {"decoding": 8, "prompt_tokens": 0}
    paces = [Pace(3.0), Pace(3.0)]
    for pace, got in zip(paces, (8, 12), strict=True):
        for _ in range(50):
            pace.observe(0.1, **given_s, tokens=got)
            pace.observe(0.1 + 32 * 0.001, decoding=8, prompt_tokens=32, tokens=got)
    tokens = [pace.prompt_tokens(decoding=8) for pace in paces]
    assert tokens == [pytest.approx(100, rel=0.02), pytest.approx(33, rel=0.02)]


def test_a_prompt_that_comes_alone_takes_half_of_what_several_may():
    pace = paced(3.0, decode_s=0.1, token_s=0.001)
    assert pace.prompt_tokens(decoding=7, coming=1) == pytest.approx(100, rel=0.15)
    assert pace.prompt_tokens(decoding=6, coming=2) > 190


# In the engine, by a clock that only the backend's work moves.

STEP_S, TOKEN_S = 2.0**-5, 2.0**-10


class Stepper:
    """A core, and how long its steps took."""

    def __init__(self, **limits: float) -> None:
        self.backend = Recorder()
        self.listener = Listener()
        wide = {"max_len": 512, "max_cached_tokens": 2048, "prefill_chunk": 64}
        self.core = EngineCore(self.backend, config(**wide | limits), self.listener.deliver)

    def add(self, asked: GenerateRequest) -> None:
        params = asked.sampling
        self.core.add(
            Sequence(
                request=asked,
                arrival=asked.stream,
                sampler=Sampler(params, asked.prompt, (), (), self.backend.vocab_size),
                reserved=len(asked.prompt) + params.max_tokens,
                submitted_at=0.0,
            )
        )

    def step(self) -> tuple[int, int, float]:
        """Run a step; return its tokens of prompts, those that decoded in it, and its seconds."""
        self.core.step()
        assert self.core.failure is None
        self.core.flush()
        return (*self.backend.last, self.core.step_s)


class Recorder(SimulatedBackend):
    def __init__(self) -> None:
        super().__init__(step_s=STEP_S, prefill_token_s=TOKEN_S)
        self.last = (0, 0)

    def step(self, prompts, tokens, lengths, drafts=()):
        self.last = (sum(len(piece.tokens) for piece in prompts), len(tokens))
        return super().step(prompts, tokens, lengths, drafts)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    still = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr(engine_core, "time", still)
    monkeypatch.setattr(simulated, "time", still)


def decoding(**limits: float) -> Stepper:
    """Return one with a stream that has decoded for some steps, and whose first chunk is known."""
    stepper = Stepper(**limits)
    stepper.add(request(max_tokens=300))
    for _ in range(3):
        stepper.step()
    stepper.add(request((8, 9) * 16, max_tokens=2))
    while stepper.core.slots.free < 3 or stepper.core.scheduler.waiting:
        stepper.step()
    return stepper


@pytest.mark.parametrize(
    ("slowdown", "tokens"), [(1.01, 16), (2.5, 24), (4.0, 48), (16.0, 64), (math.inf, 64)]
)
def test_long_prompts_are_cut_to_what_those_who_decode_bear(slowdown: float, tokens: int):
    stepper = decoding(prompt_slowdown=slowdown, prefix_cache_bytes=0)
    stepper.add(request(tuple(range(1, 302)), max_tokens=2))
    steps = [stepper.step() for _ in range(300 // tokens)]
    for size, rows, took in steps:
        assert tokens - 1 <= size <= 1.1 * tokens
        assert size == 16 or took <= slowdown * STEP_S * 1.1
        assert rows == 1 or (size, rows, took) == steps[-1]


def test_those_are_coming_whose_prompts_wait_with_a_slot_for_each():
    stepper = decoding(prefix_cache_bytes=0)
    free = stepper.core.slots.free
    assert stepper.core.scheduler.coming_count == 0
    for number in range(1, free + 3):
        stepper.add(request(tuple(range(1, 302)), max_tokens=2))
        assert stepper.core.scheduler.coming_count == min(number, free)
    stepper.step()
    assert stepper.core.scheduler.prefilling is not None
    assert stepper.core.scheduler.coming_count == free


def test_while_nobody_decodes_prompts_are_not_slowed_down():
    stepper = decoding(prompt_slowdown=1.1)
    for sequence in stepper.core.slots.running():
        stepper.core.scheduler.remove(sequence)
    stepper.add(request(tuple(range(1, 302)), max_tokens=2))
    assert [stepper.step()[:2] for _ in range(2)] == [(256, 0), (44, 1)]


def test_a_prompt_is_the_same_however_it_was_cut():
    replies = []
    for slowdown in (1.01, 2.5, math.inf):
        stepper = decoding(prompt_slowdown=slowdown)
        asked = request(tuple(range(1, 302)), max_tokens=10)
        stepper.add(asked)
        while asked.stream not in stepper.listener.finished:
            stepper.step()
        replies.append(stepper.listener.tokens[asked.stream])
    assert replies[0] == replies[1] == replies[2]
    assert len(replies[0]) == 10


def test_work_counts_a_token_with_what_it_takes_in_a_full_step() -> None:
    pace = Pace(2.0)
    for _ in range(50):
        for decoding in (1, 8):
            pace.observe(0.02 + 0.001 * decoding, decoding=decoding, prompt_tokens=0)
            pace.observe(0.084 + 0.001 * decoding, decoding=decoding, prompt_tokens=64)
    # A full step's share of one stream, however few there were; and prompts as they are.
    assert pace.work_s(decoding=1, prompt_tokens=0, slots=8) == pytest.approx(0.0035, rel=0.02)
    assert pace.work_s(decoding=8, prompt_tokens=0, slots=8) == pytest.approx(0.028, rel=0.02)
    assert pace.work_s(decoding=0, prompt_tokens=64, slots=8) == pytest.approx(0.064, rel=0.02)
    assert Pace(2.0).work_s(decoding=8, prompt_tokens=8, slots=8) == 0.0
