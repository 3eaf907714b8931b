"""The TensorRT backend on a simulated device: opening, memory, batch sizes, and a device that fails."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from backends_under_contract import (
    CHUNK,
    CONTEXT,
    build,
    open_tensorrt,
    simulated_device,
    standard_interface,
)
from engine_driver import config, request, running
from simulated_gpu import simulated_machine
from tiny_checkpoints import write_folder

from serve_app.errors import ConfigError, GeneratorLost, TensorRTUnavailable
from serve_app.generation.backends.base import SamplingBackend
from serve_app.generation.backends.opening import open_backend
from serve_app.generation.backends.tensorrt import opening
from serve_app.generation.backends.tensorrt.backend import TensorRTBackend
from serve_app.generation.backends.tensorrt.buckets import batch_buckets, bucket_of
from serve_app.generation.backends.tensorrt.device import DeviceFault
from serve_app.generation.backends.tensorrt.device_kv import DeviceKV
from serve_app.generation.backends.tensorrt.memory_plan import MemoryPlan
from serve_app.generation.backends.tensorrt.simulated_device import SimulatedDevice
from serve_app.messages.generation import FinishReason
from serve_app.models.decoder_interface import GRAPH_FILE
from serve_app.models.engine_build.model_engine import build_model_engine
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.engine_build.profiles import decoder_profiles
from serve_app.models.store import ModelStore, PreparedModel

GIB = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("decoders") / "standard", "standard")


@pytest.mark.parametrize(
    ("slots", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (20, (1, 2, 4, 8, 16, 20)),
        (32, (1, 2, 4, 8, 16, 24, 32)),
    ],
)
def test_batch_sizes_end_with_all_slots(slots: int, sizes: tuple[int, ...]) -> None:
    assert batch_buckets(slots) == sizes


@pytest.mark.parametrize("slots", [1, 5, 16, 33, 64])
def test_every_batch_takes_the_next_size(slots: int) -> None:
    buckets = batch_buckets(slots)
    for batch in range(1, slots + 1):
        size = bucket_of(buckets, batch)
        assert size >= batch
        assert all(other < batch for other in buckets if other < size)


def plan(*, free: int = GIB, blocks: int = 0, activations: int = 0) -> MemoryPlan:
    return MemoryPlan.of(
        standard_interface(), blocks=blocks, block_tokens=16, activations=activations, free=free
    )


def test_a_slot_is_its_keys_and_values_its_logits_and_its_choices() -> None:
    interface = standard_interface()
    kv = 2 * interface.layers * interface.kv_heads * CONTEXT * interface.head_dim * 4
    per_token = (plan().slot - kv) / interface.vocab_size
    # Logits, biases and counts have 4 bytes, a stop token's mark has one; the rest is for sorting.
    assert per_token == 4 + 4 + 4 + 1 + 48


def test_blocks_and_activations_are_counted_once_whatever_the_slots() -> None:
    interface = standard_interface()
    more = plan(blocks=10, activations=1000).fixed - plan().fixed
    assert more == 1000 + 10 * 16 * interface.token_bytes


def test_slots_are_those_wanted_or_as_many_as_there_is_room_for() -> None:
    small = plan()
    room = MemoryPlan(slot=small.slot, fixed=1000, free=1000 + 3 * small.slot + 1)
    assert [room.slots(wanted) for wanted in (1, 3, 4, 100)] == [1, 3, 3, 3]


@pytest.mark.parametrize("free", [0, 1000, 50_000])
def test_a_gpu_without_room_for_a_slot_is_refused_with_what_to_change(free: int) -> None:
    with pytest.raises(ConfigError, match=r"generator\.prefix_cache_mb.*--cache-length") as refused:
        plan(free=free).slots(1)
    assert refused.value.param == "generator.slots"


def test_an_engine_takes_no_more_memory_than_was_reckoned(folder: Path) -> None:
    device = simulated_device(activation_bytes=4096)
    backend = open_tensorrt(folder, device)
    before = device.free_bytes()
    backend.allocate(slots=6, max_len=CONTEXT, blocks=4, block_tokens=16)
    reckoned = plan(free=before, blocks=4, activations=2 * 4096)
    assert before - device.free_bytes() <= reckoned.fixed + 6 * reckoned.slot


def test_slots_that_do_not_fit_are_left_out_and_the_rest_serves(folder: Path) -> None:
    need = plan(free=0, activations=2 << 20)
    free = int((need.fixed + 3.5 * need.slot) / 0.95)
    backend = open_tensorrt(folder, simulated_device(memory_bytes=free))
    limits = {"prefix_cache_bytes": 0, "max_len": CONTEXT, "max_cached_tokens": 1024}
    with running(backend, slots=6, **limits) as (engine, listener):
        assert engine.stats().slots == 3
        asked = [request(max_tokens=5, seed=number) for number in range(5)]
        for each in asked:
            engine.submit(each)
        assert [len(listener.reply(each)) for each in asked] == [5] * 5


def on_one_gpu(
    folder: Path, *, weights: int = 0, streamable: int = 0, **limits: int
) -> tuple[SimulatedDevice, list[TensorRTBackend]]:
    """Open two backends on a GPU, each with half of it, as two replicas that start at once do."""
    sizes = {"activation_bytes": 4096, "weights_bytes": weights, "streamable_bytes": streamable}
    device = simulated_device(**sizes, **limits)
    engines = [device.load_engine(folder / GRAPH_FILE) for _ in range(2)]
    return device, [
        TensorRTBackend(device, engine, standard_interface(), share=0.5) for engine in engines
    ]


WEIGHTS = 4 << 20


def test_two_replicas_on_one_gpu_have_as_many_slots_each_and_both_serve(folder: Path) -> None:
    need = plan(free=0, activations=2 * 4096)
    half = int((need.fixed + 3.5 * need.slot) / 0.95) + WEIGHTS
    device, both = on_one_gpu(folder, weights=WEIGHTS, memory_bytes=2 * half)
    limits = config(slots=6, prefix_cache_bytes=0)
    # Whoever comes first would have room for all six, and leave none.
    assert [backend.fitted(limits).slots for backend in both] == [3, 3]
    first, second = both
    sizes = {"slots": 6, "max_len": CONTEXT, "max_cached_tokens": 1024, "prefix_cache_bytes": 0}
    free = device.free_bytes()
    with running(first, **sizes) as (one, heard), running(second, **sizes) as (other, also_heard):
        assert one.stats().slots == other.stats().slots == 3
        assert free - device.free_bytes() + 2 * WEIGHTS <= 2 * half
        for engine, listener in ((one, heard), (other, also_heard)):
            asked = request(max_tokens=5)
            engine.submit(asked)
            assert len(listener.reply(asked)) == 5


def test_weights_on_the_host_are_as_many_for_each_of_two_replicas(folder: Path) -> None:
    free = memory(slots=2, weights=STREAMED // 2)
    _, both = on_one_gpu(folder, streamable=STREAMED, memory_bytes=2 * free)
    for backend in both:
        backend.allocate(slots=2, max_len=CONTEXT, blocks=0, block_tokens=16)
    assert both[0].streamed_bytes == both[1].streamed_bytes
    assert both[0].streamed_bytes == pytest.approx(STREAMED // 2, abs=4)


def test_a_share_of_what_somebody_else_has_taken_is_what_is_left_of_it(folder: Path) -> None:
    device, (one, _) = on_one_gpu(folder, memory_bytes=GIB)
    slots = one.fitted(config(slots=6, prefix_cache_bytes=0)).slots
    device.zeros((device.free_bytes() - plan(free=0).slot,), torch.uint8)
    with pytest.raises(ConfigError, match=r"A share of 0\.5 of the GPU has .* num_gpus"):
        one.fitted(config(slots=slots, prefix_cache_bytes=0))


def streaming(folder: Path, *, free: int, weights: int, kept: int | None = None) -> TensorRTBackend:
    """Open an engine with weights that may stay on the host, on a device with so much memory."""
    device = simulated_device(memory_bytes=free, activation_bytes=4096, streamable_bytes=weights)
    engine = device.load_engine(folder / GRAPH_FILE)
    return TensorRTBackend(device, engine, standard_interface(), weights_bytes=kept)


STREAMED = 10 << 20
# Streaming takes twice the memory to work in, and prefill half as much as decoding.
STREAMING = 4 * 4096


def memory(*, slots: float, weights: int) -> int:
    """Return the memory of a device that has room for slots and some weights beside them, and no more."""
    need = plan(free=0, activations=STREAMING)
    return int((need.fixed + slots * need.slot + weights) / 0.95) + 1


def test_a_model_larger_than_the_memory_serves_from_the_hosts(folder: Path) -> None:
    whole = request(tuple(range(5, 30)), max_tokens=20)
    with running(open_tensorrt(folder), max_len=CONTEXT, prefix_cache_bytes=0) as (
        engine,
        listener,
    ):
        engine.submit(whole)
        expected = listener.reply(whole)
    free = memory(slots=2, weights=STREAMED // 4)
    assert free < STREAMED
    backend = streaming(folder, free=free, weights=STREAMED)
    asked = request(tuple(range(5, 30)), max_tokens=20)
    limits = {"slots": 2, "max_len": CONTEXT, "prefix_cache_bytes": 0}
    with running(backend, **limits) as (engine, listener):
        assert engine.stats().slots == 2
        engine.submit(asked)
        assert listener.reply(asked) == expected
    assert backend.streamed_bytes == pytest.approx(STREAMED - STREAMED // 4, abs=2)


def test_weights_take_what_slots_leave_and_no_more(folder: Path) -> None:
    free = memory(slots=6, weights=STREAMED // 2)
    for slots, least in ((6, STREAMED // 2), (1, STREAMED // 2 + 4 * plan().slot)):
        backend = streaming(folder, free=free, weights=STREAMED)
        backend.allocate(slots=slots, max_len=CONTEXT, blocks=0, block_tokens=16)
        assert STREAMED - backend.streamed_bytes >= least
        assert backend.device.free_bytes() >= int(0.05 * free) - 1  # the reserve


def test_all_weights_are_on_the_gpu_where_there_is_room(folder: Path) -> None:
    backend = streaming(folder, free=memory(slots=6, weights=STREAMED), weights=STREAMED)
    backend.allocate(slots=6, max_len=CONTEXT, blocks=0, block_tokens=16)
    assert backend.streamed_bytes == 0


def test_the_operator_says_how_many_weights_stay_on_the_gpu_and_slots_take_the_rest(
    folder: Path,
) -> None:
    free = memory(slots=3.5, weights=3 << 20)
    backend = streaming(folder, free=free, weights=STREAMED, kept=3 << 20)
    assert backend.fitted(config(slots=6, prefix_cache_bytes=0)).slots == 3
    backend.allocate(slots=3, max_len=CONTEXT, blocks=0, block_tokens=16)
    assert backend.streamed_bytes == STREAMED - (3 << 20)
    # More than there are is all of them.
    backend = streaming(folder, free=GIB, weights=STREAMED, kept=GIB // 2)
    backend.allocate(slots=1, max_len=CONTEXT, blocks=0, block_tokens=16)
    assert backend.streamed_bytes == 0


def test_weights_that_leave_no_room_for_a_slot_are_refused_with_the_setting(folder: Path) -> None:
    free = memory(slots=2, weights=0)
    backend = streaming(folder, free=free, weights=STREAMED, kept=8 << 20)
    with pytest.raises(ConfigError, match=r"lower generator\.gpu_weights_mb"):
        backend.fitted(config())


def test_a_model_that_leaves_no_room_is_told_of_weight_streaming() -> None:
    with pytest.raises(ConfigError, match="an engine with --weight-streaming"):
        plan(free=1000).slots(1)


def test_how_many_weights_stay_is_settled_before_there_is_a_context(folder: Path) -> None:
    backend = streaming(folder, free=GIB, weights=STREAMED)
    backend.allocate(slots=1, max_len=CONTEXT, blocks=0, block_tokens=16)
    with pytest.raises(DeviceFault, match="while there are contexts"):
        backend._engine.set_weight_streaming_budget_v2(1)


def test_an_engine_for_fewer_slots_bounds_them(folder: Path) -> None:
    backend = open_tensorrt(folder, simulated_device(slots=2))
    assert backend.fitted(config(slots=6)).slots == 2
    assert backend.fitted(config(slots=1)).slots == 1
    with pytest.raises(ConfigError, match=r"room for 2 slots.*`parley model build`"):
        backend.allocate(slots=3, max_len=CONTEXT, blocks=0, block_tokens=16)


def test_a_longer_sequence_than_a_slot_holds_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"lower generator\.max_len"):
        open_tensorrt(folder).allocate(slots=1, max_len=CONTEXT + 1, blocks=0, block_tokens=16)


def test_no_more_steps_are_in_flight_than_there_are_buffers_for(folder: Path) -> None:
    backend = open_tensorrt(folder)
    backend.allocate(slots=1, max_len=CONTEXT, blocks=0, block_tokens=16)
    for _ in range(backend.depth):
        backend.enqueue([], [])
    with pytest.raises(ValueError, match="collect one first"):
        backend.enqueue([], [])


def test_a_slot_that_tensorrt_cannot_be_pointed_to_is_refused() -> None:
    device = simulated_device()
    interface = dataclasses.replace(standard_interface(), context_length=3, cache_length=3)
    with pytest.raises(ConfigError, match="multiple of 64"):
        DeviceKV(device, device.stream(), interface, slots=2, blocks=0, block_tokens=16)


@pytest.mark.parametrize("after", [0, 1, 7, 40])
def test_a_device_that_fails_has_every_stream_handed_back_and_the_replica_replaced(
    folder: Path, after: int
) -> None:
    device = simulated_device()
    backend = open_tensorrt(folder, device)
    with running(backend, slots=2, max_len=CONTEXT, max_cached_tokens=1024) as (engine, listener):
        engine.check(stall_timeout_s=30.0)
        first = request(max_tokens=120)
        engine.submit(first)
        listener.wait_for(lambda: len(listener.tokens[first.stream]) >= 3)
        # Two run and one waits: all of them are handed back.
        others = [request(max_tokens=120), request(max_tokens=120)]
        device.fail_at = device.launched + after
        for each in others:
            engine.submit(each)
        for each in (first, *others):
            end = listener.end_of(each)
            assert end.reason is FinishReason.HANDED_BACK
        with pytest.raises(GeneratorLost, match="the simulated device failed"):
            engine.check(stall_timeout_s=30.0)
        with pytest.raises(GeneratorLost, match="try again"):
            engine.submit(request())


def test_what_was_said_before_the_failure_is_what_the_model_says(folder: Path) -> None:
    whole = request(max_tokens=60)
    with running(open_tensorrt(folder), max_len=CONTEXT) as (engine, listener):
        engine.submit(whole)
        reply = listener.reply(whole)
    device = simulated_device()
    lost = request(max_tokens=60)
    with running(open_tensorrt(folder, device), max_len=CONTEXT) as (engine, listener):
        device.fail_at = device.launched + 60
        engine.submit(lost)
        said = listener.reply(lost)
    assert 0 < len(said) < 60
    assert said == reply[: len(said)]


def test_a_device_that_fails_at_the_start_is_lost_at_once(folder: Path) -> None:
    device = simulated_device()
    device.fail_at = 0
    with pytest.raises(GeneratorLost, match="the simulated device failed"):
        open_tensorrt(folder, device).allocate(slots=2, max_len=CONTEXT, blocks=0, block_tokens=16)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedModel:
    """A model with an engine, on a machine whose GPU is simulated."""
    write_folder(tmp_path / "tiny")
    model = ModelStore(tmp_path / "home").prepare(
        str(tmp_path / "tiny"), precision="fp32", form="standard", cache_length=CONTEXT
    )
    machine = simulated_machine()
    monkeypatch.setattr(opening, "open_machine", lambda: machine)
    build_model_engine(
        model,
        machine,
        slots=3,
        prefill_chunk=CHUNK,
        options=BuildOptions(version_compatible=True),
        store=tmp_path / "engines",
        home=tmp_path / "home",
    )
    return model


def test_a_standard_model_with_an_engine_opens_on_the_gpu(
    served: PreparedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = []

    def open_device(*, host_code: bool) -> SimulatedDevice:
        allowed.append(host_code)
        profiles = decoder_profiles(served.manifest.interface, slots=3, prefill_chunk=CHUNK)
        return SimulatedDevice(profiles)

    monkeypatch.setattr(opening, "_open_device", open_device)
    backend = open_backend(served, threads=1, engines=tmp_path / "engines")
    assert isinstance(backend, SamplingBackend)
    assert allowed == [True]  # a version compatible plan holds code of its own
    cpu = ModelStore(tmp_path / "home").prepare(
        str(tmp_path / "tiny"), precision="fp32", form="cpu"
    )
    on_cpu = open_backend(cpu, threads=1)
    said = []
    for each in (backend, on_cpu):
        asked = request(tuple(range(5, 30)), max_tokens=20)
        with running(each, slots=3, max_len=64, prefix_block=16) as (engine, listener):
            engine.submit(asked)
            said.append(listener.reply(asked))
    assert said[0] == said[1]
    assert len(said[0]) == 20


def test_a_torch_that_knows_no_gpu_is_refused(
    served: PreparedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TensorRTUnavailable, match=r"can't use the GPU: install .*parley\[gpu\]"):
        open_backend(served, threads=1, engines=tmp_path / "engines")


def test_a_machine_without_torch_is_refused(
    served: PreparedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TensorRTUnavailable, match=r"PyTorch can't be loaded .*parley\[gpu\]"):
        open_backend(served, threads=1, engines=tmp_path / "engines")
