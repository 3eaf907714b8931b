"""What one step does, without threads: who is admitted, computed, moved and copied."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from engine_driver import Listener, alone, config, request

from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.engine_core import EngineCore
from serve_app.generation.sampling import Sampler
from serve_app.generation.sequence import Sequence
from serve_app.messages.generation import FinishReason, GenerateRequest


class _Recorder(SimulatedBackend):
    """Notes every call: ("step", [(slot, start, size), …], n), ("move", …), ("load", …)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def step(self, prompts, tokens, lengths, drafts=()):
        pieces = [(piece.slot, piece.start, len(piece.tokens)) for piece in prompts]
        self.calls.append(("step", pieces, len(tokens)))
        return super().step(prompts, tokens, lengths, drafts)

    def move(self, source, target, length):
        self.calls.append(("move", source, target, length))
        super().move(source, target, length)

    def load(self, blocks, slot):
        self.calls.append(("load", len(blocks), slot))
        super().load(blocks, slot)


class _Stepper:
    """A core that a test steps by hand."""

    def __init__(self, **limits: Any) -> None:
        self.config = config(**limits)
        self.backend = _Recorder()
        self.listener = Listener()
        self.core = EngineCore(self.backend, self.config, self.listener.deliver)
        self.sequences: dict[int, Sequence] = {}

    def add(self, asked: GenerateRequest) -> Sequence:
        params = asked.sampling
        sequence = Sequence(
            request=asked,
            arrival=asked.stream,
            sampler=Sampler(params, asked.prompt, asked.output, (), self.backend.vocab_size),
            reserved=min(len(asked.prompt) + params.max_tokens, self.config.max_len),
            submitted_at=0.0,
        )
        self.sequences[asked.stream] = sequence
        self.core.add(sequence)
        return sequence

    def step(self) -> list[tuple[Any, ...]]:
        """Run a step; return the backend's calls."""
        self.backend.calls.clear()
        self.core.step()
        assert self.core.failure is None
        self.flush()
        return list(self.backend.calls)

    def pieces(self) -> list[tuple[int, int, int]]:
        """Run a step; return the (slot, start, size) of what it computed of prompts."""
        return [piece for call in self.step() if call[0] == "step" for piece in call[1]]

    def flush(self) -> None:
        for ended in self.core.flush():
            del self.sequences[ended.request.stream]

    def finish(self) -> None:
        for _ in range(5000):
            if not self.sequences:
                return
            self.step()
        pytest.fail(f"these streams never end: {list(self.sequences.values())}")


def test_the_first_token_goes_out_in_the_step_that_computes_the_last_of_its_prompt():
    stepper = _Stepper()
    asked = request()
    stepper.add(asked)
    assert stepper.step() == [("step", [(0, 0, 2)], 1)]
    assert len(stepper.listener.tokens[asked.stream]) == 1
    assert stepper.step() == [("step", [], 1)]
    assert len(stepper.listener.tokens[asked.stream]) == 2


@pytest.mark.parametrize(("prompt", "pieces"), [((7,), []), ((7, 8), [(1, 0, 1)])])
def test_a_prompt_of_hardly_any_tokens_starts_at_once_beside_others(prompt, pieces):
    stepper = _Stepper()
    other, short = request(max_tokens=12), request(prompt)
    stepper.add(other)
    stepper.step()
    stepper.add(short)
    assert stepper.step() == [("step", pieces, 2)]
    assert len(stepper.listener.tokens[short.stream]) == 1
    stepper.finish()
    assert stepper.listener.tokens[short.stream] == alone(request(prompt))
    assert stepper.listener.tokens[other.stream] == alone(request(max_tokens=12))
    finished = stepper.listener.finished[short.stream]
    assert (finished.prompt_tokens, finished.cached_tokens) == (len(prompt), 0)


def test_prompts_of_one_token_take_no_part_of_the_chunk():
    stepper = _Stepper(prefill_chunk=4)
    stepper.add(request(max_tokens=12))
    stepper.step()
    asked = [request((token,)) for token in (7, 8)]
    for one in (*asked, request((1, 2, 3, 4, 5))):
        stepper.add(one)
    assert stepper.step() == [("step", [(3, 0, 4)], 4)]
    stepper.finish()
    for one in asked:
        assert stepper.listener.tokens[one.stream] == alone(request(one.prompt))


def test_a_long_prompt_is_computed_in_chunks_within_the_steps_of_others():
    stepper = _Stepper(prefill_chunk=16)
    first, long = request(max_tokens=50), request(tuple(range(1, 41)))
    stepper.add(first)
    stepper.step()
    stepper.add(long)
    chunks = [stepper.step() for _ in range(3)]
    assert chunks == [
        [("step", [(1, 0, 16)], 1)],
        [("step", [(1, 16, 16)], 1)],
        [("step", [(1, 32, 7)], 2)],  # and the last token with those that decode
    ]
    assert len(stepper.listener.tokens[first.stream]) == 4
    assert len(stepper.listener.tokens[long.stream]) == 1
    stepper.finish()
    assert stepper.listener.tokens[long.stream] == alone(request(long.prompt))
    assert stepper.listener.tokens[first.stream] == alone(request(max_tokens=50))


def test_while_nobody_decodes_chunks_are_larger():
    stepper = _Stepper(prefill_chunk=16)
    stepper.add(request(tuple(range(1, 61))))
    assert stepper.step() == [("step", [(0, 0, 59)], 1)]


def test_while_nobody_decodes_a_chunk_ends_all_the_same():
    stepper = _Stepper(prefill_chunk=16)
    stepper.add(request(tuple(range(1, 101))))
    assert stepper.step() == [("step", [(0, 0, 64)], 0)]
    assert stepper.step() == [("step", [(0, 64, 35)], 1)]


def test_a_step_computes_no_more_prompt_tokens_than_a_chunk_while_others_decode():
    stepper = _Stepper(prefill_chunk=16, prefix_cache_bytes=0)
    stepper.add(request(max_tokens=60))
    stepper.step()
    for start in range(3):
        stepper.add(request(tuple(range(start + 1, start + 13))))
    while len(stepper.core.slots.running()) < 4 or stepper.core.scheduler.prefilling:
        assert sum(size for _, _, size in stepper.pieces()) <= 16


def test_what_is_left_of_a_chunk_goes_to_the_next_prompt():
    stepper = _Stepper(prefill_chunk=16, prefix_cache_bytes=0)
    stepper.add(request(max_tokens=60))
    stepper.step()
    stepper.add(request(tuple(range(1, 11))))
    stepper.add(request(tuple(range(21, 31))))
    assert stepper.step() == [("step", [(1, 0, 9), (2, 0, 7)], 2)]
    assert stepper.step() == [("step", [(2, 7, 2)], 3)]


@pytest.mark.parametrize(("first", "second"), [(16, 10), (15, 4)])
def test_a_rest_that_would_be_or_leave_a_single_token_goes_to_nobody(first, second):
    stepper = _Stepper(prefill_chunk=16, prefix_cache_bytes=0)
    stepper.add(request(max_tokens=60))
    stepper.step()
    stepper.add(request(tuple(range(1, first + 1))))
    late = stepper.add(request(tuple(range(21, second + 21))))
    assert stepper.step() == [("step", [(1, 0, first - 1)], 2)]
    assert (late.slot, late.computed) == (2, 0)
    assert stepper.step() == [("step", [(2, 0, second - 1)], 3)]
    stepper.finish()
    assert stepper.listener.tokens[late.request.stream] == alone(request(late.request.prompt))


def test_a_newcomer_takes_the_free_slot_without_a_copy():
    stepper = _Stepper(prefill_chunk=16)
    for tokens in (3, 30, 30):
        stepper.add(request(max_tokens=tokens))
    for _ in range(3):
        stepper.step()  # in the last, the first one, in slot 0, ends
    # As long as a prompt can be that one step begins and ends.
    stepper.add(request(tuple(range(1, 18)), max_tokens=30))
    assert stepper.step() == [("step", [(0, 0, 16)], 3)]


def test_the_last_sequence_fills_a_gap_that_nobody_else_does():
    stepper = _Stepper()
    for tokens in (3, 30, 30):
        stepper.add(request(max_tokens=tokens))
    for _ in range(3):
        stepper.step()
    assert stepper.step() == [("move", 2, 0, 5), ("step", [], 2)]
    assert stepper.step() == [("step", [], 2)]


def test_many_ends_in_one_step_cost_no_needless_copies():
    stepper = _Stepper()
    for tokens in (3, 3, 30, 3):
        stepper.add(request(max_tokens=tokens))
    for _ in range(3):
        stepper.step()
    assert stepper.step() == [("move", 2, 0, 5), ("step", [], 1)]


def test_a_long_prompt_stays_out_of_the_way_of_decoding_sequences():
    stepper = _Stepper(prefill_chunk=4, prefix_cache_bytes=0)
    for tokens in (4, 30):
        stepper.add(request(max_tokens=tokens))
    stepper.step()
    stepper.step()  # both decode
    long = request(tuple(range(1, 17)))
    sequence = stepper.add(long)
    assert stepper.step() == [("step", [(2, 0, 4)], 2)]
    assert stepper.step() == [("step", [(2, 4, 4)], 2)]  # the first one ends
    assert sequence.slot == 2
    assert stepper.step() == [("move", 1, 0, 6), ("step", [(2, 8, 4)], 1)]
    assert sequence.slot == 2
    # What is there of it moves, and the last piece goes where it is then.
    assert stepper.step() == [("move", 2, 1, 12), ("step", [(1, 12, 3)], 2)]
    stepper.finish()
    assert stepper.listener.tokens[long.stream] == alone(request(long.prompt))


def _prefilling_beside_a_gap() -> tuple[_Stepper, GenerateRequest, GenerateRequest]:
    """Leave slot 0 to nobody, 1 to one that decodes, and 2 to one with three tokens to prefill."""
    stepper = _Stepper(prefill_chunk=8, prefix_cache_bytes=0)
    short, stays = request(max_tokens=2), request((4, 5, 6), max_tokens=30)
    stepper.add(short)
    stepper.add(stays)
    stepper.step()
    long = request(tuple(range(1, 13)))
    stepper.add(long)
    assert stepper.step() == [("step", [(2, 0, 8)], 2)]
    assert stepper.core.slots.running()[0].request is stays
    return stepper, stays, long


def test_a_prompts_last_piece_follows_its_sequence_into_a_gap():
    stepper, stays, long = _prefilling_beside_a_gap()
    assert stepper.step() == [("move", 2, 0, 8), ("step", [(0, 8, 3)], 2)]
    stepper.finish()
    assert stepper.listener.tokens[long.stream] == alone(request(long.prompt))
    assert stepper.listener.tokens[stays.stream] == alone(request((4, 5, 6), max_tokens=30))


def test_a_gap_beside_a_prompts_last_piece_goes_to_a_newcomer_without_a_copy():
    stepper, stays, long = _prefilling_beside_a_gap()
    late = request((7, 8, 9))
    stepper.add(late)
    assert stepper.step() == [("step", [(2, 8, 3), (0, 0, 2)], 3)]
    stepper.finish()
    for one, again in (
        (long, request(long.prompt)),
        (stays, request((4, 5, 6), max_tokens=30)),
        (late, request((7, 8, 9))),
    ):
        assert stepper.listener.tokens[one.stream] == alone(again)


def test_a_long_newcomer_goes_behind_a_sequence_whose_last_piece_is_planned():
    stepper, stays, long = _prefilling_beside_a_gap()
    late = request(tuple(range(31, 51)))
    stepper.add(late)
    assert stepper.step() == [("move", 2, 0, 8), ("step", [(0, 8, 3), (2, 0, 5)], 2)]
    stepper.finish()
    for one, again in (
        (long, request(long.prompt)),
        (stays, request((4, 5, 6), max_tokens=30)),
        (late, request(late.prompt)),
    ):
        assert stepper.listener.tokens[one.stream] == alone(again)


def test_the_second_turn_prefills_only_what_is_new():
    stepper = _Stepper()
    first = request(tuple(range(1, 21)), max_tokens=13)
    stepper.add(first)
    stepper.finish()
    # 20 + 12 tokens are computed: four blocks of 8.
    turn = first.prompt + tuple(stepper.listener.tokens[first.stream]) + (7, 8, 9)
    second = request(turn)
    stepper.add(second)
    assert stepper.step() == [("load", 4, 0), ("step", [(0, 32, len(turn) - 33)], 1)]
    stepper.finish()
    assert stepper.listener.finished[second.stream].cached_tokens == 32
    assert stepper.listener.finished[first.stream].cached_tokens == 0
    assert stepper.listener.tokens[second.stream] == alone(request(turn))


def test_a_persona_that_streams_share_is_computed_once_from_the_next_step_on():
    stepper = _Stepper(prefill_chunk=64)
    persona = tuple(range(1, 25))
    asked = [request((*persona, 100 + i, 7, 8)) for i in range(4)]
    for one in asked[:2]:
        stepper.add(one)
    # What one step computes is not there before its end.
    assert stepper.step() == [("step", [(0, 0, 26), (1, 0, 26)], 2)]
    assert stepper.core.prefixes.used == 3
    for one in asked[2:]:
        stepper.add(one)
    assert stepper.step() == [
        ("load", 3, 2),
        ("load", 3, 3),
        ("step", [(2, 24, 2), (3, 24, 2)], 4),
    ]
    stepper.finish()
    for one in asked:
        assert stepper.listener.tokens[one.stream] == alone(request(one.prompt))


@pytest.mark.parametrize("length", range(1, 60))
@pytest.mark.parametrize("chunk", [3, 4, 5, 16])
def test_a_single_token_is_never_a_chunk_of_a_longer_prompt(length, chunk):
    stepper = _Stepper(prefill_chunk=chunk)
    stepper.add(request((1, 1), max_tokens=100))
    stepper.step()
    asked = request(tuple(range(2, length + 2)), max_tokens=1)
    stepper.add(asked)
    sizes = []
    while asked.stream in stepper.sequences:
        sizes += [size for _, _, size in stepper.pieces()]
    assert sum(sizes) == length - 1  # the last token is computed as those behind it
    assert max(sizes, default=0) <= chunk
    assert length <= 2 or min(sizes) > 1


def test_the_last_prompt_token_is_always_computed():
    stepper = _Stepper()
    asked = request(tuple(range(1, 17)))
    stepper.add(asked)
    stepper.finish()
    again = request(asked.prompt)
    stepper.add(again)
    assert stepper.step() == [("load", 1, 0), ("step", [(0, 8, 7)], 1)]
    stepper.finish()
    assert stepper.listener.tokens[again.stream] == stepper.listener.tokens[asked.stream]


def test_a_cancelled_streams_prefix_is_kept():
    stepper = _Stepper(prefill_chunk=8)
    stepper.add(request(max_tokens=50))
    stepper.step()
    cut = stepper.add(request(tuple(range(1, 41))))
    stepper.step()
    stepper.step()
    stepper.core.end(cut, FinishReason.CANCELLED)
    again = request(cut.request.prompt)
    stepper.add(again)
    assert ("load", 2, 1) in stepper.step()


def test_earlier_prefixes_give_way_while_slots_are_full_and_come_back_afterwards():
    # 32 blocks of 8 tokens; the slots may come to hold 256.
    stepper = _Stepper(max_len=64, max_cached_tokens=256)
    stepper.backend._kv._kept = (
        0  # slots of this backend are so small that they would keep everything
    )
    dropped: list[int] = []
    stepper.backend.drop = dropped.append  # type: ignore[method-assign]
    for first in range(10):
        stepper.add(request(tuple(range(first + 1, first + 33)), max_tokens=1))
        stepper.finish()
    assert stepper.core.prefixes.used == stepper.core.prefixes.capacity == 32
    assert dropped == []
    long = [request(tuple(range(100 + one, 140 + one)), max_tokens=20) for one in range(4)]
    for one in long:
        stepper.add(one)
    used = []
    while stepper.sequences:
        held = sum(one.computed for one in stepper.sequences.values() if one.running)
        stepper.step()
        used.append(stepper.core.prefixes.used)
        assert used[-1] <= 8 + (256 - held) // 8
    assert min(used) <= 12
    assert len(dropped) >= 20
    for one in long:
        assert stepper.listener.tokens[one.stream] == alone(request(one.prompt, max_tokens=20))
    for first in range(10):
        stepper.add(request(tuple(range(first + 201, first + 233)), max_tokens=1))
        stepper.finish()
    assert stepper.core.prefixes.used == 32


def test_a_failed_step_leaves_nothing_in_the_prefix_cache():
    stepper = _Stepper()
    asked = request(tuple(range(1, 21)))
    stepper.add(asked)

    def broken(*args: Any) -> None:
        raise RuntimeError("no copy")

    stepper.backend.save = broken  # type: ignore[method-assign]
    stepper.core.step()
    assert stepper.core.failures == 1
    assert stepper.core.prefixes.used == 0
    assert stepper.core.slots.free == 4
    stepper.core.flush()
    assert stepper.listener.finished[asked.stream].reason is FinishReason.ERROR


def test_a_step_that_fails_ends_those_it_had_planned_and_nobody_who_waits():
    stepper = _Stepper(slots=3, prefill_chunk=16)
    decoding = request((4, 5, 6), max_tokens=50)
    long, short, waiting = (request(tuple(range(i, i + n))) for i, n in ((1, 21), (40, 9), (60, 9)))
    stepper.add(decoding)
    stepper.step()
    for one in (long, short, waiting):
        stepper.add(one)
    stepper.step()
    prefilled, generated = stepper.core.prefilled, stepper.core.generated
    step, planned = stepper.backend.step, []

    def broken(prompts: Any, tokens: Any, lengths: Any, drafts: Any = ()) -> Any:
        planned.extend((piece.slot, piece.start, len(piece.tokens)) for piece in prompts)
        step(prompts, tokens, lengths, drafts)
        raise RuntimeError("no power")

    stepper.backend.step = broken  # type: ignore[method-assign]
    stepper.core.step()
    # The last piece of one prompt, and the whole of another.
    assert planned == [(1, 16, 4), (2, 0, 8)]
    assert stepper.core.failures == 1
    assert (stepper.core.prefilled, stepper.core.generated) == (prefilled, generated)
    assert stepper.core.prefixes.used == 0
    assert (stepper.core.slots.free, stepper.core.scheduler.reserved) == (3, 0)
    stepper.flush()
    for one, tokens in ((decoding, 2), (long, 0), (short, 0)):
        finished = stepper.listener.finished[one.stream]
        assert (finished.reason, finished.error_code) == (FinishReason.ERROR, "engine_error")
        assert finished.completion_tokens == tokens
    stepper.backend.step = step  # type: ignore[method-assign]
    stepper.core.failure = None
    assert stepper.step() == [("step", [(0, 0, 8)], 1)]
    assert stepper.core.failures == 0
    stepper.finish()
    assert stepper.listener.tokens[waiting.stream] == alone(request(waiting.prompt))


def test_logits_that_are_not_numbers_end_their_own_stream_alone():
    stepper = _Stepper()
    sound = request((4, 5, 6), max_tokens=20)
    stepper.add(sound)
    stepper.step()
    step = stepper.backend.step

    def broken(*args: Any) -> Any:
        logits = step(*args)
        logits[1:] = np.nan
        return logits

    stepper.backend.step = broken  # type: ignore[method-assign]
    for _ in range(3):
        poisoned = request(tuple(range(1, 21)))
        stepper.add(poisoned)
        while poisoned.stream in stepper.sequences:
            stepper.step()
        finished = stepper.listener.finished[poisoned.stream]
        assert (finished.reason, finished.error_code) == (FinishReason.ERROR, "engine_error")
        assert "not numbers" in finished.error_message
    assert stepper.core.failures == 0
    assert stepper.core.prefixes.used == 0
    stepper.finish()
    assert stepper.listener.tokens[sound.stream] == alone(request((4, 5, 6), max_tokens=20))


def test_a_penalty_that_overflows_ends_its_own_stream_alone():
    stepper = _Stepper(max_len=1024, max_cached_tokens=2048)
    everything = tuple(range(stepper.backend.vocab_size))
    sound, extreme = request(), request(everything, repetition_penalty=1e-45)
    stepper.add(sound)
    stepper.add(extreme)
    stepper.finish()
    finished = stepper.listener.finished[extreme.stream]
    assert (finished.reason, finished.error_code) == (FinishReason.ERROR, "engine_error")
    assert "penalties" in finished.error_message
    assert stepper.core.failures == 0
    assert stepper.listener.tokens[sound.stream] == alone(request())


@pytest.mark.parametrize("seed", range(4))
def test_a_random_walk_loses_no_slot_and_mixes_up_no_stream(seed):
    walk = random.Random(seed)
    stepper = _Stepper(slots=6, max_cached_tokens=400, prefill_chunk=walk.choice([3, 16, 40]))
    asked: dict[int, GenerateRequest] = {}
    cancelled = set()
    personas = [tuple(walk.randrange(512) for _ in range(20)) for _ in range(3)]
    for _ in range(3000):
        if walk.random() < 0.3 and len(stepper.sequences) < 30:
            prompt = walk.choice(personas)[: walk.randrange(21)]
            prompt += tuple(walk.randrange(512) for _ in range(walk.randrange(1, 40)))
            one = request(
                prompt,
                max_tokens=walk.randrange(1, 40),
                priority=walk.randrange(3),
                temperature=walk.choice([0.0, 1.0]),
                seed=walk.randrange(1000),
                stop_token_ids=tuple(walk.sample(range(512), 20)),
            )
            asked[one.stream] = one
            stepper.add(one)
        if walk.random() < 0.05 and stepper.sequences:
            sequence = walk.choice(list(stepper.sequences.values()))
            cancelled.add(sequence.request.stream)
            stepper.core.end(sequence, FinishReason.CANCELLED)
            stepper.flush()
        stepper.step()
        running = [sequence for sequence in stepper.sequences.values() if sequence.running]
        assert stepper.core.slots.free == 6 - len(running)
        assert stepper.core.scheduler.reserved == sum(one.reserved for one in running) <= 400
    stepper.finish()
    assert stepper.core.slots.free == 6
    assert stepper.core.scheduler.reserved == 0
    assert len(stepper.listener.finished) == len(asked) > 400
    assert stepper.core.prefix_hits > 0
    solo = _Stepper(slots=1, prefix_cache_bytes=0)
    for stream, one in asked.items():
        again = request(one.prompt)
        solo.add(GenerateRequest(again.request_id, "solo", again.stream, one.prompt, one.sampling))
        solo.finish()
        whole, got = solo.listener.tokens[again.stream], stepper.listener.tokens[stream]
        assert got == (whole[: len(got)] if stream in cancelled else whole)


def test_a_sampled_stream_is_the_same_alone_and_in_a_batch_of_sixteen():
    sampled = {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 0.5}
    limits = {"slots": 16, "max_cached_tokens": 2048, "prefill_chunk": 7}
    stepper = _Stepper(**limits)
    asked = [
        request(tuple(range(i + 1, i + 9)), max_tokens=30, seed=100 + i, **sampled)
        for i in range(16)
    ]
    for one in asked:
        stepper.add(one)
    stepper.finish()
    for i, one in enumerate(asked):
        assert stepper.listener.tokens[one.stream] == alone(
            request(one.prompt, max_tokens=30, seed=100 + i, **sampled)
        )
    streams = [stepper.listener.tokens[one.stream] for one in asked]
    assert len({tuple(stream) for stream in streams}) == 16
