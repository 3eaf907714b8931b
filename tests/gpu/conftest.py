"""Each test runs on the machine's GPU, where there is one, and on a simulated one, so that it can be relied on."""

from __future__ import annotations

import pytest
from models_on_a_gpu import CHUNK, CONTEXT, SLOTS, ModelsOnGpu
from random_checkpoint import tiny_architecture
from simulated_gpu import simulated_machine
from tiny_checkpoints import VOCAB

from serve_app.errors import GpuUnavailable, TensorRTUnavailable
from serve_app.generation.backends.tensorrt import opening
from serve_app.models.decoder_interface import DecoderInterface
from serve_app.models.engine_build.machine import open_machine
from serve_app.models.engine_build.profiles import decoder_profiles

# As much as the tiny model's weights take, about.
STREAMABLE = 1 << 20


@pytest.fixture(scope="session", params=["gpu", "simulated"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelsOnGpu:
    home = tmp_path_factory.mktemp(request.param)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if request.param == "simulated":
        return ModelsOnGpu(simulated_machine(), home, simulated=True)
    try:
        machine = open_machine()
    except (GpuUnavailable, TensorRTUnavailable) as error:
        pytest.skip(error.message)
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} can't use the GPU")
    return ModelsOnGpu(machine, home, simulated=False)


@pytest.fixture
def gpu(models: ModelsOnGpu, monkeypatch: pytest.MonkeyPatch) -> ModelsOnGpu:
    if not models.simulated:
        return models
    from serve_app.generation.backends.tensorrt.simulated_device import SimulatedDevice

    architecture = tiny_architecture(vocab_size=VOCAB)
    interface = DecoderInterface.of(architecture, "standard", cache_length=CONTEXT)
    profiles = decoder_profiles(interface, slots=SLOTS, prefill_chunk=CHUNK)

    def open_device(*, host_code: bool) -> SimulatedDevice:
        return SimulatedDevice(profiles, streamable_bytes=STREAMABLE)

    monkeypatch.setattr(opening, "open_machine", lambda: models.machine)
    monkeypatch.setattr(opening, "_open_device", open_device)
    return models
