from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from load.engine_chats import EngineChats, EngineLevel
from load.floor import Demand, Floor
from load.machine import Machine, measure_machine
from load.supply import Plan
from load.timed_backend import RuntimeWork, TimedBackend
from load.workload import Workload
from serve_app.errors import ContextLengthExceeded
from serve_app.generation.backends.base import Piece
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.engine import EngineConfig
from serve_app.messages.tokenization import ChatEncoding, Message, TokenizerInfo
from serve_app.models.store import PreparedModel
from serve_app.tokenization.tokenizer import ChatTokenizer

WORKLOAD = Workload(turns=3, system_tokens=40, prompt_tokens=20, output_tokens=6, seed=1)
STEP_S = 0.002


class FailingBackend(SimulatedBackend):
    """Fails at one of the steps in which somebody decodes."""

    def __init__(self, at: int, **options: Any) -> None:
        super().__init__(**options)
        self.left = at

    def step(self, prompts: Any, tokens: Any, lengths: Any, drafts: Any = ()) -> Any:
        self.left -= bool(len(tokens))
        if not self.left:
            msg = "a device error"
            raise RuntimeError(msg)
        return super().step(prompts, tokens, lengths, drafts)


class RecordingTokenizer(ChatTokenizer):
    """Keeps what it was given to encode."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.chats: list[tuple[Message, ...]] = []

    def encode_chat(self, messages: Sequence[Message], **options: Any) -> ChatEncoding:
        self.chats.append(tuple(messages))
        return super().encode_chat(messages, **options)


def simulated(model: PreparedModel) -> TokenizerInfo:
    manifest = model.manifest
    return TokenizerInfo("simulated", manifest.vocab_size, 512, manifest.eos_token_ids, 0)


def measured(
    model: PreparedModel,
    plan: Plan,
    backend: SimulatedBackend | None = None,
    **limits: int,
) -> list[EngineLevel]:
    """Measure an engine on a simulated backend with the bundled model's tokenizer."""
    manifest = model.manifest
    if backend is None:
        backend = SimulatedBackend(vocab_size=manifest.vocab_size, step_s=STEP_S)
    config: dict[str, int] = {
        "slots": 4,
        "max_len": 512,
        "max_cached_tokens": 2048,
        "prefill_chunk": 64,
        "max_queued": 16,
        "prefix_cache_bytes": 8 * 4096,
        "prefix_block": 8,
    }
    text = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    with EngineChats(
        backend,
        EngineConfig(**(config | limits)),
        ChatTokenizer(model.path, simulated(model)),
        decode=text.decode,
    ) as chats:
        return chats.measure(WORKLOAD, plan)


def test_the_engine_holds_every_turn(bundled_int8: PreparedModel) -> None:
    one, four = measured(bundled_int8, Plan((1, 4), rounds=1))
    for each, conversations in ((one, 1), (four, 4)):
        level = each.level
        assert level.conversations == conversations
        assert level.replies == 3 * conversations
        assert level.errors == {}
        assert level.tokens.completion == level.arrivals == 6 * level.replies
        # Each reply's first token comes with the last of its prompt, which is decoded like those
        # that follow.
        assert each.work.decoded + each.work.mixed_decoded == 6 * level.replies
        computed = each.work.prefilled + level.replies
        assert computed == level.tokens.prompt - level.tokens.cached
    assert one.work.decodes == one.work.decoded == 5 * one.level.replies
    assert one.work.mixed == one.work.mixed_decoded == one.level.replies
    assert four.work.decodes + four.work.mixed < four.work.decoded + four.work.mixed_decoded


def test_later_turns_find_the_earlier_ones_in_the_cache(bundled_int8: PreparedModel) -> None:
    (with_cache,) = measured(bundled_int8, Plan((1,), rounds=1))
    (without,) = measured(bundled_int8, Plan((1,), rounds=1), prefix_cache_bytes=0)
    assert (without.level.tokens.cached, without.level.tokens.spared) == (0, 0)
    assert 0 < with_cache.level.tokens.spared <= with_cache.level.tokens.held
    assert with_cache.level.tokens.held == without.level.tokens.held
    assert with_cache.level.tokens.prompt == without.level.tokens.prompt
    assert with_cache.level.tokens.cached > with_cache.level.tokens.prompt / 2


def test_later_turns_have_the_earlier_replies_in_front(bundled_int8: PreparedModel) -> None:
    tokenizer = RecordingTokenizer(bundled_int8.path, simulated(bundled_int8))
    config = EngineConfig(
        slots=1, max_len=512, max_cached_tokens=512, prefill_chunk=64, max_queued=1
    )
    backend = SimulatedBackend(vocab_size=bundled_int8.manifest.vocab_size)
    with EngineChats(
        backend, config, tokenizer, decode=lambda tokens: f"{len(tokens)} tokens"
    ) as chats:
        chats.measure(WORKLOAD, Plan((1,), rounds=1))
    _, *turns = tokenizer.chats
    assert [len(messages) for messages in turns] == [2, 4, 6]
    assert turns[2][:4] == turns[1]
    assert turns[2][2] == Message("assistant", "6 tokens")


def test_a_steps_time_is_split_without_rest(bundled_int8: PreparedModel) -> None:
    (each,) = measured(bundled_int8, Plan((2,), rounds=1))
    assert each.work.decode_s >= STEP_S * each.work.decodes > 0
    assert each.work.mixed_s > 0
    assert each.work.copy_s > 0
    assert each.outside_s > 0
    assert each.busy_s == pytest.approx(each.work.total_s + each.outside_s)
    assert each.busy_s <= each.level.wall_s
    assert each.steps >= each.work.decodes + each.work.mixed


def test_latencies_are_those_of_the_engine(bundled_int8: PreparedModel) -> None:
    (each,) = measured(bundled_int8, Plan((1,), rounds=1))
    gaps = each.level.inter_token_ms
    assert gaps is not None
    assert gaps.p50 >= STEP_S * 1e3 * 0.9  # deliveries jitter, steps don't get shorter


def test_an_engines_errors_are_counted(bundled_int8: PreparedModel) -> None:
    # The warm-up's six steps go well, and one of the first conversation's.
    backend = FailingBackend(at=8, vocab_size=bundled_int8.manifest.vocab_size)
    (each,) = measured(bundled_int8, Plan((1,), rounds=2), backend)
    assert each.level.errors == {"engine_error": 1}
    assert each.level.conversations == 2
    assert each.level.replies == 3


def test_a_conversation_that_outgrows_the_slots_is_refused(bundled_int8: PreparedModel) -> None:
    with pytest.raises(ContextLengthExceeded):
        measured(bundled_int8, Plan((1,), rounds=1), max_len=100)


def test_work_is_counted_by_hand() -> None:
    timed = TimedBackend(SimulatedBackend(vocab_size=16))
    timed.allocate(slots=2, max_len=32, blocks=4, block_tokens=4)
    nobody = np.zeros(0, np.int64), np.zeros(0, np.int32)
    assert timed.step([Piece(0, 0, np.arange(4))], *nobody).shape == (0, 16)
    before = timed.work()
    assert (before.decodes, before.mixed, before.prefilled, before.mixed_past) == (0, 1, 4, 6)
    timed.save(0, 0, 1)
    timed.load([1], 1)
    prompts = [Piece(0, 4, np.arange(3)), Piece(1, 4, np.arange(2))]
    logits = timed.step(prompts, np.array([1]), np.array([7], np.int32))
    assert logits.shape == (1, 16)
    timed.step([], np.array([1, 2]), np.array([8, 6], np.int32))
    work = timed.work() - before
    assert (work.mixed, work.prefilled, work.mixed_decoded) == (1, 5, 1)
    assert work.mixed_past == (4 + 5 + 6) + (4 + 5) + 7
    assert (work.decodes, work.decoded, work.decode_past) == (1, 2, 14)
    assert min(work.decode_s, work.mixed_s, work.copy_s) > 0
    assert work.total_s == work.decode_s + work.mixed_s + work.copy_s


def test_the_floor_is_the_longer_of_reading_and_computing() -> None:
    demand = Demand(weight_bytes=100, token_bytes=2, token_flops=50, head_flops=10, past_flops=1)
    machine = Machine(threads=1, read_bytes_per_s=10.0, ops_per_s=100.0, arithmetic="fp32")
    work = RuntimeWork(
        decodes=2,
        decoded=8,
        decode_past=40,
        mixed=1,
        prefilled=20,
        mixed_decoded=3,
        mixed_past=220,
    )
    floor = Floor.of(work, demand, machine)
    assert floor.decode_read_s == pytest.approx((2 * 100 + 40 * 2) / 10)
    assert floor.decode_compute_s == pytest.approx((8 * 60 + 48) / 100)
    assert floor.decode_s == floor.decode_read_s
    assert floor.mixed_read_s == pytest.approx(10.0)
    assert floor.mixed_compute_s == pytest.approx((20 * 50 + 3 * 60 + 243) / 100)
    assert floor.mixed_s == floor.mixed_compute_s


@pytest.mark.parametrize(
    ("integers", "arithmetic"), [(False, "fp32"), (True, "8-bit blocks")], ids=["fp32", "integers"]
)
def test_a_machine_is_measured_in_the_arithmetic_of_the_model(
    monkeypatch: pytest.MonkeyPatch, integers: bool, arithmetic: str
) -> None:
    monkeypatch.setattr("load.machine._SECONDS", 0.01)
    measured = measure_machine(1, integers=integers)
    assert (measured.threads, measured.arithmetic) == (1, arithmetic)
    # Somewhere between a slow laptop's core and what none has.
    assert 1e8 < measured.read_bytes_per_s < 1e12
    assert 1e8 < measured.ops_per_s < 1e13


def test_the_bundled_models_demand_is_that_of_its_weights(bundled_int8: PreparedModel) -> None:
    token_bytes = bundled_int8.manifest.interface.token_bytes
    demand = Demand.of(bundled_int8.manifest, token_bytes)
    assert demand.token_bytes == 2 * 30 * 3 * 64 * 2
    # 134.5 million parameters at 8.5 bits, the last page of each tensor and the norms in fp32 on top.
    assert demand.weight_bytes == pytest.approx(134_515_008 * 8.5 / 8, rel=0.01)
    assert demand.token_flops + demand.head_flops == pytest.approx(2 * 134_515_008, rel=0.001)
    assert demand.past_flops == 4 * 30 * 9 * 64
