"""A reply that goes on at another engine, cut wherever it may be, is the undisturbed one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from engine_driver import GatedBackend, Listener, alone, request, running

from serve_app.errors import GeneratorLost
from serve_app.generation.backends.opening import open_backend
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.pace import Pace
from serve_app.messages.generation import Finished, FinishReason, GenerateRequest
from serve_app.models.store import PreparedModel

PROMPT = (5, 6, 7, 5, 6)
TOKENS = 40
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 2},
    "seeded": {"temperature": 1.0, "seed": 11},
    "top-p": {"temperature": 0.9, "seed": 12, "top_p": 0.8, "logprobs": 1},
    "penalties": {
        "temperature": 1.0,
        "seed": 13,
        "top_p": 0.95,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "logprobs": 3,
    },
    "greedy penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
}


def cut(asked: GenerateRequest, whole: list[int], produced: int) -> GenerateRequest:
    """Return what a replica is asked that takes a reply over behind so many tokens."""
    again = request(asked.prompt)
    return replace(
        again, sampling=asked.sampling, output=tuple(whole[:produced]), moves=1, timeout_s=30.0
    )


def wholly(asked: GenerateRequest, listener: Listener) -> tuple[list[int], Any, Finished]:
    listener.end_of(asked)
    stream = asked.stream
    return listener.tokens[stream], listener.logprobs[stream], listener.finished[stream]


@pytest.mark.parametrize("draft_tokens", [0, 8])
@pytest.mark.parametrize("kind", SAMPLING)
def test_a_reply_cut_at_any_token_goes_on_as_undisturbed(
    monkeypatch: pytest.MonkeyPatch, kind: str, draft_tokens: int
) -> None:
    # With six tokens all has been said before, and guesses are made wherever there is a chance.
    monkeypatch.setattr(Pace, "worthwhile", lambda *_, **__: 0.0)
    limits: dict[str, Any] = {"draft_tokens": draft_tokens, "max_cached_tokens": 256}
    asked = request(PROMPT, max_tokens=TOKENS, min_tokens=TOKENS // 2, **SAMPLING[kind])
    with running(SimulatedBackend(vocab_size=8), eos=(3,), prefix_cache_bytes=0) as one:
        one[0].submit(asked)
        whole, logprobs, finished = wholly(asked, one[1])
    assert len(whole) >= TOKENS // 2
    with running(SimulatedBackend(vocab_size=8), eos=(3,), **limits) as (engine, listener):
        # It repeats itself, so that guesses are known to be worth something.
        engine.submit(teacher := request((1, 2), max_tokens=100, logit_bias=((4, 50.0),)))
        listener.end_of(teacher)
        taught = engine.stats().drafted_total
        pieces = [cut(asked, whole, produced) for produced in range(len(whole) + 1)]
        for piece in pieces:
            engine.submit(piece)
        for piece in pieces:
            produced = len(piece.output)
            tokens, rest, end = wholly(piece, listener)
            assert tokens == whole[produced:], produced
            assert rest == logprobs[produced:]
            assert (end.reason, end.prompt_tokens) == (finished.reason, finished.prompt_tokens)
            assert end.completion_tokens == finished.completion_tokens
        assert (engine.stats().drafted_total > taught) == bool(draft_tokens)


def test_the_bundled_model_goes_on_as_undisturbed(bundled_int8: PreparedModel) -> None:
    """Tokens that were decoded are prefilled at the other engine: it must come to the same bits."""
    limits: dict[str, Any] = {
        "slots": 8,
        "max_len": 256,
        "max_cached_tokens": 2048,
        "prefill_chunk": 64,
        "prefix_block": 16,
        "prefix_cache_bytes": 8 << 20,
    }
    prompt = tuple(range(1000, 1040))
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 5, "top_p": 0.9, "frequency_penalty": 0.4},
    ]
    asked = [request(prompt, max_tokens=48, ignore_eos=True, **kind) for kind in kinds]
    with running(open_backend(bundled_int8, threads=2), eos=(2,), **limits) as (engine, listener):
        for one in asked:
            engine.submit(one)
        wholes = [listener.reply(one) for one in asked]
    limits |= {"draft_tokens": 8}
    with running(open_backend(bundled_int8, threads=2), eos=(2,), **limits) as (engine, listener):
        for one, whole in zip(asked, wholes, strict=True):
            pieces = [cut(one, whole, produced) for produced in (1, 2, 17, 31, 32, 47)]
            for piece in pieces:
                engine.submit(piece)
            for piece in pieces:
                assert listener.reply(piece) == whole[len(piece.output) :], len(piece.output)


def test_what_a_stopping_engine_hands_back_goes_on_elsewhere() -> None:
    asked = request((1, 2, 3), max_tokens=100, temperature=1.0, seed=9)
    waits = request((4, 5), max_tokens=20)
    whole = alone(asked)
    backend = GatedBackend()
    with running(backend, slots=1) as (engine, listener):
        engine.submit(asked)
        engine.submit(waits)
        backend.permits.release(30)
        listener.wait_for(lambda: len(listener.tokens[asked.stream]) == 30)
        engine.drain(0.0)
        backend.let_go()
        handed_back = listener.end_of(asked)
        assert listener.end_of(waits).reason is FinishReason.HANDED_BACK
    assert handed_back.reason is FinishReason.HANDED_BACK
    told = listener.tokens[asked.stream]
    assert len(told) < 100
    with running() as (engine, listener):
        on = cut(asked, told, len(told))
        engine.submit(on)
        assert told + listener.reply(on) == whole


def test_an_engine_that_drains_lets_short_replies_end_and_takes_no_others() -> None:
    backend = GatedBackend()
    with running(backend, slots=1) as (engine, listener):
        asked = [request(max_tokens=5), request(max_tokens=5)]
        for one in asked:
            engine.submit(one)
        engine.drain(60.0)
        engine.drain(120.0)  # the shorter one counts
        with pytest.raises(GeneratorLost, match="stopping"):
            engine.submit(request())
        backend.let_go()
        assert {listener.end_of(one).reason for one in asked} == {FinishReason.LENGTH}
        engine.stop(0.0)


def test_a_moved_stream_is_not_refused_by_a_full_queue_and_goes_first() -> None:
    backend = GatedBackend()
    with running(backend, slots=1, max_queued=2) as (engine, listener):
        first = request(max_tokens=4)
        engine.submit(first)
        backend.waiting.wait(10)
        waiting = [request(max_tokens=2), request(max_tokens=2)]
        moved = cut(request(max_tokens=4), [9, 9], 2)
        for one in [*waiting, moved]:
            engine.submit(one)
        backend.let_go()
        for one in [*waiting, moved]:
            listener.end_of(one)
    assert list(listener.finished) == [one.stream for one in (first, moved, *waiting)]


def test_a_reply_that_fills_its_slot_goes_on_to_the_same_end() -> None:
    asked = request(tuple(range(1, 120)), max_tokens=500)
    whole = alone(asked)
    with running() as (engine, listener):
        for produced in (5, len(whole) - 1, len(whole)):
            piece = cut(asked, whole, produced)
            engine.submit(piece)
            assert listener.reply(piece) == whole[produced:]
            assert listener.end_of(piece).reason is FinishReason.LENGTH


def test_what_a_reply_found_in_the_cache_is_told_with_its_first_token_alone() -> None:
    with running() as (engine, listener):
        prompt = tuple(range(1, 30))
        engine.submit(before := request(prompt, max_tokens=1))
        listener.end_of(before)
        engine.submit(asked := request(prompt, max_tokens=4))
        whole = listener.reply(asked)
        engine.submit(moved := cut(asked, whole, 2))
        listener.end_of(moved)
    frames = [frame for delivery in listener.deliveries for frame in delivery.values()]
    begun = {
        one.stream: (one.cached_tokens, asked.stream in frame.streams)
        for frame in frames
        for one in frame.begun
    }
    assert begun == {before.stream: (0, False), asked.stream: (24, True)}
    assert listener.finished[asked.stream].cached_tokens == 24
