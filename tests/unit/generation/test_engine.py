"""What the engine promises to those who submit streams."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
from engine_driver import GatedBackend, Listener, alone, config, request, running

from serve_app.errors import (
    ConfigError,
    ContextLengthExceeded,
    GeneratorLost,
    InvalidRequest,
    Overloaded,
)
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.engine import Engine
from serve_app.messages.generation import FinishReason


def test_a_stream_ends_with_length_after_max_tokens():
    with running() as (engine, listener):
        asked = request(max_tokens=5)
        engine.submit(asked)
        finished = listener.end_of(asked)
    assert len(listener.tokens[asked.stream]) == 5
    assert finished.reason is FinishReason.LENGTH
    assert (finished.prompt_tokens, finished.completion_tokens) == (3, 5)


def test_a_full_context_ends_the_stream_with_length():
    asked = request(tuple(range(1, 120)), max_tokens=500)
    with running() as (engine, listener):
        engine.submit(asked)
        assert len(listener.reply(asked)) == 128 - 119
        assert listener.end_of(asked).reason is FinishReason.LENGTH


@pytest.mark.parametrize("kind", ["eos", "stop_token_ids"])
def test_a_stop_token_ends_the_stream_and_is_not_reported(kind: str):
    free = alone(request(max_tokens=12))
    cut = next(i for i, token in enumerate(free) if token not in free[:i] and i >= 4)
    asked = request(max_tokens=12, stop_token_ids=(free[cut],) if kind != "eos" else ())
    with running(eos=(free[cut],) if kind == "eos" else ()) as (engine, listener):
        engine.submit(asked)
        assert listener.reply(asked) == free[:cut]
        finished = listener.end_of(asked)
    assert finished.reason is FinishReason.STOP
    assert finished.completion_tokens == cut


def test_a_first_token_that_stops_gives_an_empty_reply_and_frees_the_slot():
    first = alone(request(max_tokens=1))[0]
    asked = request(stop_token_ids=(first,))
    with running(slots=1) as (engine, listener):
        engine.submit(asked)
        assert listener.reply(asked) == []
        after = request((9, 9))
        engine.submit(after)
        assert len(listener.reply(after)) == 8


def test_ignore_eos_generates_through_eos():
    free = alone(request(max_tokens=12))
    asked = request(max_tokens=12, ignore_eos=True)
    with running(eos=(free[4],)) as (engine, listener):
        engine.submit(asked)
        assert listener.reply(asked) == free


def test_cancel_frees_the_slot_at_the_next_step():
    backend = GatedBackend()
    with running(backend, slots=1) as (engine, listener):
        first, second = request(max_tokens=100), request()
        engine.submit(first)
        engine.submit(second)
        backend.waiting.wait(10)
        engine.cancel(first.request_id)
        backend.permits.release(2)  # for the step that is running, and one more
        listener.wait_for(lambda: len(listener.deliveries) == 2)
        assert listener.finished[first.stream].reason is FinishReason.CANCELLED
        assert len(listener.tokens[first.stream]) == 1
        assert len(listener.tokens[second.stream]) == 1


def test_cancelling_a_waiting_stream_ends_it_without_a_slot():
    backend = GatedBackend()
    with running(backend, slots=1) as (engine, listener):
        first, second = request(max_tokens=100), request()
        engine.submit(first)
        engine.submit(second)
        engine.cancel(second.request_id)
        backend.permits.release(2)
        assert listener.end_of(second).reason is FinishReason.CANCELLED
        assert listener.tokens[second.stream] == []
        listener.wait_for(lambda: engine.stats().waiting == 0)


def test_cancelling_an_unknown_or_finished_stream_is_no_error():
    with running() as (engine, listener):
        asked = request()
        engine.submit(asked)
        listener.end_of(asked)
        engine.cancel(asked.request_id)
        engine.cancel("nobody")
        again = request()
        engine.submit(again)
        assert listener.end_of(again).reason is FinishReason.LENGTH


def test_cancel_subscriber_ends_its_streams_and_no_others():
    backend = GatedBackend()
    with running(backend) as (engine, listener):
        gone = [request(max_tokens=50, subscriber="a") for _ in range(3)]
        stays = request(max_tokens=50, subscriber="b")
        for asked in (*gone, stays):
            engine.submit(asked)
        engine.cancel_subscriber("a")
        backend.let_go()
        assert {listener.end_of(asked).reason for asked in gone} == {FinishReason.CANCELLED}
        assert listener.end_of(stays).reason is FinishReason.LENGTH


def test_a_running_stream_ends_at_its_deadline():
    with running(SimulatedBackend(step_s=0.01)) as (engine, listener):
        asked = request(max_tokens=120, timeout_s=0.6)
        engine.submit(asked)
        finished = listener.end_of(asked)
    assert finished.reason is FinishReason.DEADLINE
    assert 0 < finished.completion_tokens < 120


def test_a_waiting_stream_ends_at_its_deadline():
    with running(SimulatedBackend(step_s=0.02), slots=1) as (engine, listener):
        first, second = request(max_tokens=120), request(timeout_s=0.05)
        engine.submit(first)
        engine.submit(second)
        finished = listener.end_of(second)
        assert finished.reason is FinishReason.DEADLINE
        assert finished.completion_tokens == 0
        assert first.stream not in listener.finished


def test_every_subscriber_gets_one_frame_per_step_with_all_its_tokens():
    backend = GatedBackend()
    with running(backend) as (engine, listener):
        asked = [request(max_tokens=6, subscriber=name) for name in "aabb"]
        for one in asked:
            engine.submit(one)
        backend.let_go()
        for one in asked:
            listener.end_of(one)
    # All four decode together at some time: two tokens for each of the two subscribers.
    full = [
        d
        for d in listener.deliveries
        if {n: len(f.tokens) for n, f in d.items()} == {"a": 2, "b": 2}
    ]
    assert full
    assert all(set(d["a"].streams) == {one.stream for one in asked[:2]} for d in full)
    # A step that has nothing for a subscriber sends it nothing.
    assert all(frame.tokens or frame.finished for d in listener.deliveries for frame in d.values())
    assert len(listener.deliveries) <= engine.stats().steps_total


def test_the_last_tokens_and_the_end_come_in_one_frame():
    with running() as (engine, listener):
        asked = request(max_tokens=3)
        engine.submit(asked)
        listener.end_of(asked)
    last = listener.deliveries[-1]["ingress"]
    assert last.tokens
    assert [finished.stream for finished in last.finished] == [asked.stream]


def test_lower_priority_numbers_go_first_and_equal_ones_in_order():
    backend = GatedBackend()
    with running(backend, slots=1) as (engine, listener):
        blocker = request(max_tokens=4)
        engine.submit(blocker)
        backend.waiting.wait(10)
        waiting = [request(priority=p, max_tokens=2) for p in (1, 1, 0, 2)]
        for asked in waiting:
            engine.submit(asked)
        backend.let_go()
        for asked in waiting:
            listener.end_of(asked)
    order = [stream for stream in listener.finished if stream != blocker.stream]
    assert order == [waiting[i].stream for i in (2, 0, 1, 3)]


def test_a_stream_waits_until_its_tokens_fit():
    backend = GatedBackend()
    with running(backend, max_cached_tokens=128) as (engine, listener):
        first = request(max_tokens=97)
        second = request(max_tokens=97)  # 2 * (3 + 97) tokens are more than 128
        engine.submit(first)
        engine.submit(second)
        backend.waiting.wait(10)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.free_slots) == (1, 1, 3)
        assert stats.reserved_tokens == 100
        backend.let_go()
        listener.end_of(second)
    ends = [asked.stream for asked in (first, second)]
    assert list(listener.finished) == ends


def test_a_prompt_that_cannot_fit_is_refused_at_once_with_the_numbers():
    engine = Engine(SimulatedBackend(), config(), eos_token_ids=(), deliver=Listener().deliver)
    with pytest.raises(ContextLengthExceeded, match=r"200 tokens.*128.*at most 127"):
        engine.submit(request((1,) * 200))
    assert engine.stats().waiting == 0


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (request(()), "empty"),
        (request((1, 512)), "0 to 511"),
        (request((1, -1)), "0 to 511"),
        (request(max_tokens=0), "max_tokens"),
        (request(max_tokens=2, output=(1, 2, 3)), "max_tokens"),
        (request(logit_bias=((512, 1.0),)), "logit_bias"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_at_once(asked, what):
    engine = Engine(SimulatedBackend(), config(), eos_token_ids=(), deliver=Listener().deliver)
    with pytest.raises(InvalidRequest, match=what):
        engine.submit(asked)
    assert engine.stats().waiting == 0


def test_a_subscriber_is_told_of_others_streams_and_how_long_those_that_wait_take():
    backend = GatedBackend()
    with running(backend, slots=2, max_queued=3) as (engine, listener):
        ours = request(max_tokens=100)
        theirs = [request(max_tokens=100, subscriber="theirs") for _ in range(3)]
        for asked in (ours, *theirs):
            engine.submit(asked)
        backend.waiting.wait(10)
        room = engine.room(ours.subscriber)
        assert (room.places, room.others) == (5, 3)
        assert engine.room("theirs").others == 1
        assert engine.room("nobody").others == 4
        assert room.drain_s >= 1
        engine.cancel_subscriber("theirs")
        backend.let_go()
        listener.wait_for(lambda: engine.room(ours.subscriber).others == 0)


def test_an_id_in_use_is_refused():
    engine = Engine(SimulatedBackend(), config(), eos_token_ids=(), deliver=Listener().deliver)
    asked = request()
    engine.submit(asked)
    with pytest.raises(InvalidRequest, match="in progress"):
        engine.submit(asked)


def test_a_full_queue_refuses_and_says_when_to_come_back():
    backend = GatedBackend()
    with running(backend, slots=2, max_queued=3) as (engine, listener):
        accepted = [request() for _ in range(5)]
        for asked in accepted:
            engine.submit(asked)
        with pytest.raises(Overloaded) as refused:
            engine.submit(request())
        assert refused.value.retry_after is not None
        assert 1 <= refused.value.retry_after <= 60
        backend.let_go()
        assert all(listener.end_of(asked).reason is FinishReason.LENGTH for asked in accepted)
        after = request()
        engine.submit(after)
        listener.end_of(after)


def test_a_context_larger_than_the_models_is_refused_when_the_engine_is_made():
    backend = SimulatedBackend(context_length=100)
    with pytest.raises(ConfigError, match=r"max_len is 128.*100"):
        Engine(backend, config(), eos_token_ids=(), deliver=Listener().deliver)


def test_settings_that_could_never_run_a_long_sequence_are_refused():
    with pytest.raises(ConfigError, match="max_cached_tokens"):
        config(max_cached_tokens=100)


@pytest.mark.parametrize("slowdown", [1.0, 0.5, -math.inf])
def test_a_slowdown_that_leaves_prompts_no_time_is_refused(slowdown: float):
    with pytest.raises(ConfigError, match=r"generator\.prompt_slowdown .*above 1"):
        config(prompt_slowdown=slowdown)
    assert config(prompt_slowdown=1.01).prompt_slowdown == 1.01


class _FailingBackend(SimulatedBackend):
    broken = False

    def step(self, prompts, tokens, lengths, drafts=()):
        logits = super().step(prompts, tokens, lengths, drafts)
        if self.broken:
            raise RuntimeError("device on fire")
        return logits


def test_a_failing_step_ends_its_streams_with_an_error_and_the_engine_goes_on():
    backend = _FailingBackend()
    with running(backend) as (engine, listener):
        backend.broken = True
        lost = [request() for _ in range(3)]
        for asked in lost:
            engine.submit(asked)
        for asked in lost:
            finished = listener.end_of(asked)
            assert finished.reason is FinishReason.ERROR
            assert finished.error_code == "engine_error"
            assert finished.completion_tokens == len(listener.tokens[asked.stream])
        backend.broken = False
        asked = request()
        engine.submit(asked)
        assert listener.reply(asked) == alone(request())
        engine.check(60.0)
        listener.wait_for(lambda: engine.stats().free_slots == 4)


def test_check_fails_after_steps_that_keep_failing():
    backend = _FailingBackend()
    backend.broken = True
    with running(backend) as (engine, listener):
        engine.check(60.0)
        for _ in range(3):
            asked = request()
            engine.submit(asked)
            listener.end_of(asked)
        with pytest.raises(GeneratorLost, match="in a row") as lost:
            engine.check(60.0)
        assert "on fire" in str(lost.value.__cause__)


class _NoNumbers(SimulatedBackend):
    def step(self, prompts, tokens, lengths, drafts=()):
        return np.full_like(super().step(prompts, tokens, lengths, drafts), np.nan)


def test_check_fails_when_no_step_computes_numbers():
    with running(_NoNumbers(), prefill_chunk=16) as (engine, listener):
        for _ in range(3):
            asked = request(tuple(range(1, 100)))  # computed in several steps
            engine.submit(asked)
            assert "not numbers" in listener.end_of(asked).error_message
        with pytest.raises(GeneratorLost, match="in a row") as lost:
            engine.check(60.0)
        assert "not numbers" in str(lost.value.__cause__)


def test_check_fails_when_a_step_hangs():
    backend = GatedBackend()
    with running(backend) as (engine, _):
        engine.check(0.05)
        engine.submit(request())
        assert backend.waiting.wait(10)
        deadline = time.monotonic() + 10
        with pytest.raises(GeneratorLost, match="in one step"):  # noqa: PT012
            while time.monotonic() < deadline:
                engine.check(0.05)


def test_check_fails_when_the_loop_has_died():
    def refuse(frames):
        raise RuntimeError("nobody there")

    engine = Engine(SimulatedBackend(), config(), eos_token_ids=(), deliver=refuse)
    engine.start()
    engine.check(60.0)
    engine.submit(request())
    engine._thread.join(10)
    with pytest.raises(GeneratorLost, match="not running"):
        engine.check(60.0)
    with pytest.raises(GeneratorLost):
        engine.submit(request())


def test_check_fails_before_the_start():
    engine = Engine(SimulatedBackend(), config(), eos_token_ids=(), deliver=Listener().deliver)
    with pytest.raises(GeneratorLost):
        engine.check(60.0)


def test_stop_lets_running_and_waiting_streams_end_and_refuses_new_ones():
    backend = GatedBackend()
    with running(backend, slots=2) as (engine, listener):
        asked = [request() for _ in range(5)]
        for one in asked:
            engine.submit(one)
        backend.waiting.wait(10)
        stopping = threading.Thread(target=engine.stop, args=(60.0,))
        stopping.start()
        while engine._drain_until is None:
            time.sleep(0.001)
        with pytest.raises(GeneratorLost, match="stopping"):
            engine.submit(request())
        backend.let_go()
        stopping.join(30)
        assert {listener.finished[one.stream].reason for one in asked} == {FinishReason.LENGTH}
        with pytest.raises(GeneratorLost):
            engine.check(60.0)


def test_stop_hands_back_what_is_left_after_the_drain():
    with running(SimulatedBackend(step_s=0.02), slots=1) as (engine, listener):
        asked = [request(max_tokens=120), request(max_tokens=120)]
        for one in asked:
            engine.submit(one)
        listener.wait_for(lambda: listener.tokens[asked[0].stream])
        started = time.monotonic()
        engine.stop(drain_s=0.1)
        assert time.monotonic() - started < 2
    for one in asked:
        assert listener.finished[one.stream].reason is FinishReason.HANDED_BACK


def test_an_idle_engine_takes_no_steps():
    with running() as (engine, listener):
        asked = request()
        engine.submit(asked)
        listener.end_of(asked)
        # The thread waits for work now, or is about to.
        steps = engine.stats().steps_total
        assert engine._thread.is_alive()
        threading.Event().wait(0.2)
        assert engine.stats().steps_total - steps <= 1


def test_the_account_of_a_stream_adds_up_to_its_time():
    with running(SimulatedBackend(step_s=0.005, prefill_token_s=0.005)) as (engine, listener):
        asked = request(tuple(range(1, 21)), max_tokens=10)
        started = time.monotonic()
        engine.submit(asked)
        finished = listener.end_of(asked)
        took = time.monotonic() - started
    assert finished.queue_s >= 0
    assert finished.prefill_s >= 20 * 0.005  # 19 tokens, and the step that computes the last one
    assert finished.decode_s >= 9 * 0.005
    assert finished.queue_s + finished.prefill_s + finished.decode_s <= took


def test_logprobs_travel_beside_the_tokens_of_those_who_asked():
    with running() as (engine, listener):
        with_them, without = request(logprobs=2), request((4, 5, 6))
        engine.submit(with_them)
        engine.submit(without)
        listener.end_of(with_them)
        listener.end_of(without)
    for token, entry in zip(
        listener.tokens[with_them.stream], listener.logprobs[with_them.stream], strict=True
    ):
        assert entry is not None
        assert entry.top[0] == (token, entry.chosen)
        assert np.exp(entry.chosen) < 1
    assert set(listener.logprobs[without.stream]) == {None}


def test_a_stream_that_moved_here_complete_ends_at_once():
    moved = request(max_tokens=3, output=(1, 2, 3))
    with running() as (engine, listener):
        engine.submit(moved)
        finished = listener.end_of(moved)
    assert finished.reason is FinishReason.LENGTH
    assert listener.tokens[moved.stream] == []


def test_stats_tell_what_is_there():
    backend = GatedBackend()
    with running(backend, slots=1, prefix_cache_bytes=0) as (engine, listener):
        first, second = request((1,) * 10, max_tokens=4), request((1,) * 20)
        engine.submit(first)
        engine.submit(second)
        backend.waiting.wait(10)
        stats = engine.stats()
        assert (stats.slots, stats.free_slots, stats.running, stats.waiting) == (1, 0, 1, 1)
        # The last token of the first prompt is one that the step which waits decodes.
        assert stats.queued_prompt_tokens == 20 + 1
        assert stats.cached_tokens == 10 - 1
        backend.let_go()
        listener.end_of(second)
        listener.wait_for(lambda: engine.stats().free_slots == 1)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.queued_prompt_tokens) == (0, 0, 0)
        # Last tokens are computed as those that follow them are, and belong to neither.
        assert (stats.prefilled_total, stats.generated_total) == (9 + 19, 12)
        assert stats.tokens_per_s > 0


def test_submits_and_cancels_from_many_threads_lose_no_stream_and_no_slot():
    with running(max_queued=2000) as (engine, listener):
        asked = [[request((i + 1, 2), max_tokens=1 + i % 7) for i in range(300)] for _ in range(4)]

        def drive(streams):
            for i, one in enumerate(streams):
                engine.submit(one)
                if i % 3 == 0:
                    engine.cancel(streams[i // 2].request_id)

        threads = [threading.Thread(target=drive, args=(streams,)) for streams in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in (one for streams in asked for one in streams):
            finished = listener.end_of(one)
            assert finished.reason in {FinishReason.LENGTH, FinishReason.CANCELLED}
            if finished.reason is FinishReason.LENGTH:
                assert len(listener.tokens[one.stream]) == one.sampling.max_tokens
        # A stream's end is delivered a moment before the engine forgets it.
        engine.stop(drain_s=10.0)
        stats = engine.stats()
        assert (stats.free_slots, stats.running, stats.waiting) == (4, 0, 0)
