"""The simulated device refuses what TensorRT and CUDA would, so that a test on it can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backends_under_contract import build, simulated_device

from serve_app.errors import TensorRTEngineError
from serve_app.generation.backends.tensorrt.device import (
    ALIGNMENT,
    DeviceFault,
    ExecutionContext,
)
from serve_app.generation.backends.tensorrt.simulated_device import SimulatedDevice
from serve_app.models.decoder_interface import GRAPH_FILE, INPUT_IDS

PREFILL = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("decoders") / "standard", "standard")


def context_of(device: SimulatedDevice, folder: Path) -> ExecutionContext:
    engine = device.load_engine(folder / GRAPH_FILE)
    activations = device.zeros((engine.activation_bytes(PREFILL),), torch.uint8)
    return engine.create_execution_context(PREFILL, activations, device.stream())


def test_memory_that_is_not_there_is_refused() -> None:
    device = simulated_device(memory_bytes=1000)
    with pytest.raises(DeviceFault, match="1001 bytes are wanted, 1000 are free"):
        device.zeros((1001,), torch.uint8)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"nothing")
    with pytest.raises(TensorRTEngineError, match="prepare the model anew"):
        simulated_device().load_engine(plan)


def test_addresses_must_be_aligned_and_the_devices_own(folder: Path) -> None:
    device = simulated_device()
    context = context_of(device, folder)
    memory = device.zeros((4096,), torch.uint8)
    context.set_tensor_address(INPUT_IDS, memory.data_ptr() + ALIGNMENT)
    with pytest.raises(DeviceFault, match="no multiple of 256"):
        context.set_tensor_address(INPUT_IDS, memory.data_ptr() + 8)
    with pytest.raises(DeviceFault, match="beyond the memory"):
        context.set_tensor_address(INPUT_IDS, ALIGNMENT)


def test_shapes_must_be_within_the_profile(folder: Path) -> None:
    context = context_of(simulated_device(), folder)
    context.set_input_shape(INPUT_IDS, (1, 12))
    for shape in ((1, 13), (2, 12), (1,)):
        with pytest.raises(DeviceFault, match="is not within"):
            context.set_input_shape(INPUT_IDS, shape)


def test_a_run_needs_every_shape_and_address(folder: Path) -> None:
    context = context_of(simulated_device(), folder)
    with pytest.raises(DeviceFault, match="has no address or no shape"):
        context.execute_async_v3()


def test_nobody_may_wait_while_work_is_captured() -> None:
    stream = simulated_device().stream()
    with pytest.raises(DeviceFault, match="nobody may wait"):
        stream.capture(stream.synchronize)
    stream.synchronize()


def test_nothing_happens_before_somebody_waits_and_pinned_memory_holds_poison_until_then() -> None:
    device = simulated_device()
    stream = device.stream()
    source = device.zeros((2,), torch.float32)
    host = device.pinned((2,), torch.float32)
    stream.launch(lambda: fill(source, 3.0))
    stream.copy_to_host(host, source)
    event = stream.record()
    assert source.tolist() == [0.0, 0.0]
    assert host.isnan().all()
    stream.launch(lambda: fill(source, 4.0))
    event.wait()
    assert host.tolist() == [3.0, 3.0]
    assert source.tolist() == [3.0, 3.0]


def fill(tensor: torch.Tensor, value: float) -> None:
    tensor.fill_(value)


def test_weights_that_do_not_fit_beside_what_is_taken_are_refused(folder: Path) -> None:
    device = simulated_device(memory_bytes=1000, streamable_bytes=5000)
    engine = device.load_engine(folder / GRAPH_FILE)
    engine.set_weight_streaming_budget_v2(1000)
    with pytest.raises(DeviceFault, match="1001 bytes are wanted for weights"):
        engine.set_weight_streaming_budget_v2(1001)
