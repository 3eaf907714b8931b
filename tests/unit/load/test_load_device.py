"""The engine on a device against its floor, on the simulated device."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from backends_under_contract import CHUNK, CONTEXT, build, open_tensorrt, simulated_device
from engine_driver import config
from tiny_checkpoints import write_folder
from typer.testing import CliRunner, Result

from load import device_engine, engine
from load.device_engine import DeviceLevel, DeviceRun
from load.device_report import device_json, device_table, step_bytes
from load.device_speed import DeviceSpeed, measure_device
from load.device_steps import EngineSteps, prefill_s, runtime_s
from load.floor import Demand, Floor
from load.report import console
from load.step_times import StepTimes
from load.timed_backend import RuntimeWork
from serve_app.errors import ConfigError, GeneratorLost
from serve_app.generation.backends.tensorrt.backend import TensorRTBackend
from serve_app.generation.backends.tensorrt.simulated_device import SimulatedDevice
from serve_app.gpu.driver import Driver, Gpu
from serve_app.models.decoder_interface import GRAPH_FILE
from serve_app.models.engine_build.profiles import decoder_profiles
from serve_app.models.store import ModelStore, PreparedModel

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000, 80_000_000_000, 3.35232e12)
ASKED = ["--precision", "fp32", "--slots", "3", "--prefill-chunk", "12", "--past", "20"]
ASKED += ["--steps", "10", "--concurrency", "1,3"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("load.device_speed._SECONDS", 0.01)
    monkeypatch.setattr("load.device_speed._COPIED_BYTES", 1 << 20)
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_folder(home / "tiny")
    return home


@pytest.fixture
def tiny(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model to measure."""
    monkeypatch.setenv("PARLEY_HOME", str(home))
    monkeypatch.setenv("PARLEY_GENERATOR_MAX_LEN", str(CONTEXT))
    monkeypatch.setenv("PARLEY_GENERATOR_MAX_CACHED_TOKENS", str(CONTEXT))
    return str(home / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("decoders") / "standard", "standard")


def run(*arguments: str) -> tuple[Result, str]:
    with console.capture() as printed:
        result = CliRunner().invoke(engine.app, arguments)
    return result, printed.get()


def refusal(result: Result) -> str:
    assert isinstance(result.exception, ConfigError)
    return result.exception.message


def test_each_batch_size_is_measured_against_its_floor(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    result, printed = run("--backend", "simulated", "--model", tiny, *ASKED, "--json", str(path))
    assert result.exit_code == 0, result.output
    assert "engine on simulated device: tiny (fp32, standard), 3 slots of 128" in printed
    for row in ("output tok/s", "step, ms", "bytes a step, MB", "floor, ms", "floor / step"):
        assert row in printed
    assert "prompt of 12 tokens" in printed
    assert "GB/s in a copy; " in printed
    report = json.loads(path.read_bytes())["engine"]
    one, three = report["levels"]
    assert (one["batch"], three["batch"]) == (1, 3)
    for level in (one, three):
        demand, device = report["demand"], report["device"]
        assert level["bytes"] == pytest.approx(
            demand["weight_bytes"] + level["batch"] * level["past"] * demand["token_bytes"]
        )
        assert level["floor"]["decode_read_s"] == pytest.approx(
            10 * level["bytes"] / device["copied_bytes_per_s"], rel=1e-3
        )
        assert level["step_s"] > 0
        assert level["runtime_s"] > 0
    # Behind the prompt's 20 tokens the first token and those of what was in flight beside the prompt.
    assert one["past"] == 20 - 2 + 4 + (1 + 10) / 2
    assert StepTimes.read(path).itself >= 0


def test_a_gpus_floor_is_that_of_what_its_driver_states(
    tiny: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_on_gpu(
        model: PreparedModel, engines: Path | None, *, weights_bytes: int | None
    ) -> TensorRTBackend:
        opened.append((engines, weights_bytes))
        interface = model.manifest.interface
        profiles = decoder_profiles(interface, slots=3, prefill_chunk=CHUNK)
        device = SimulatedDevice(profiles, streamable_bytes=5 << 20)
        plan = device.load_engine(model.path / GRAPH_FILE)
        return TensorRTBackend(device, plan, interface, weights_bytes=weights_bytes)

    monkeypatch.setattr(device_engine, "open_tensorrt", open_on_gpu)
    monkeypatch.setattr(device_engine, "read_driver", lambda: Driver("580", (13, 1), (H100,)))
    monkeypatch.setenv("PARLEY_MODEL_ENGINES", str(tmp_path))
    monkeypatch.setenv("PARLEY_GENERATOR_GPU_WEIGHTS_MB", "1")
    path = tmp_path / "engine.json"
    result, printed = run("--backend", "tensorrt", "--model", tiny, *ASKED, "--json", str(path))
    assert result.exit_code == 0, result.output
    assert opened == [(tmp_path, 1 << 20)]
    assert "engine on NVIDIA H100 80GB HBM3" in printed
    assert "3352.3 GB/s by its driver" in printed
    assert "4.2 MB are read from the host's memory" in printed
    report = json.loads(path.read_bytes())["engine"]
    level = report["levels"][0]
    assert level["floor"]["decode_read_s"] == pytest.approx(
        10 * level["bytes"] / H100.memory_bytes_per_s, rel=1e-3
    )


@pytest.mark.parametrize(
    ("backend", "option"),
    [("simulated", ["--turns", "2"]), ("tensorrt", ["--no-ignore-eos"]), ("cpu", ["--past", "9"])],
)
def test_an_option_that_says_nothing_to_the_backend_is_refused(
    backend: str, option: list[str]
) -> None:
    result, _ = run("--backend", backend, *option)
    assert result.exit_code == 2
    assert "says nothing to --backend" in result.output


def test_more_sequences_than_slots_are_refused(tiny: str) -> None:
    result, _ = run("--backend", "simulated", "--model", tiny, *ASKED[:-1], "1,4")
    assert "There are 3 slots, and --concurrency asks for 4" in refusal(result)


def test_a_past_that_leaves_no_room_for_steps_is_refused(tiny: str) -> None:
    result, _ = run("--backend", "simulated", "--model", tiny, *ASKED, "--steps", "100")
    assert "A slot has 128 tokens" in refusal(result)


def test_a_machine_without_torch_is_told_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "load.device_engine", None)
    result, _ = run("--backend", "tensorrt")
    assert "takes PyTorch" in refusal(result)


def test_a_slot_that_fills_up_before_all_decode_is_told(folder: Path) -> None:
    limits = config(slots=6, max_cached_tokens=6 * CONTEXT, prefill_chunk=12)
    with (
        EngineSteps(open_tensorrt(folder), limits) as steps,
        pytest.raises(ConfigError, match=r"full before 6 streams .* lower --past"),
    ):
        steps.measure(6, past=100, steps=25)


def test_one_batch_size_leaves_the_engine_free_for_the_next(folder: Path) -> None:
    limits = config(slots=6, max_cached_tokens=6 * CONTEXT, prefix_cache_bytes=0)
    backend = open_tensorrt(folder)
    with EngineSteps(backend, limits) as steps:
        pasts = [steps.measure(batch, past=30, steps=5).past for batch in (6, 1, 3, 1)]
    assert pasts[1] == pasts[3] == 30 - 2 + 4 + (1 + 5) / 2
    assert (
        pasts[0] > pasts[2] > pasts[1]
    )  # the first streams decode while others' prompts are computed
    # Afterwards the same memory serves whoever drives the runtime alone, with sampling as well.
    assert runtime_s(backend, 6, past=30, steps=5, temperature=0.8) > 0
    assert prefill_s(backend, 40, steps=3) > 0


def test_a_device_that_fails_ends_the_measurement(folder: Path) -> None:
    device = simulated_device()
    backend = open_tensorrt(folder, device)
    backend.allocate(slots=2, max_len=CONTEXT, blocks=0, block_tokens=16)
    device.fail_at = device.launched + 20
    with pytest.raises(GeneratorLost):
        runtime_s(backend, 2, past=10, steps=50)


def test_a_devices_speed_is_measured_within_its_memory() -> None:
    device = simulated_device(memory_bytes=8 << 20)
    speed = measure_device(device, name="small", stated_bytes_per_s=None, dtype=torch.float32)
    assert (speed.name, speed.arithmetic) == ("small", "float32")
    assert speed.read_bytes_per_s == speed.copied_bytes_per_s
    assert 1e8 < speed.copied_bytes_per_s < 1e13
    assert 1e8 < speed.ops_per_s < 1e15


def test_bytes_and_floors_are_reckoned_by_hand() -> None:
    speed = DeviceSpeed("x", 1000.0, 900.0, ops_per_s=1e6, arithmetic="float16")
    work = RuntimeWork(
        decode_s=4.0, decodes=2, decoded=8, decode_past=80, mixed=1, prefilled=5, mixed_s=0.5
    )
    level = DeviceLevel(batch=4, past=10.0, step_s=2.0, runtime_s=1.5, work=work)
    demand = Demand(weight_bytes=200, token_bytes=3, token_flops=5, head_flops=1, past_flops=1)
    found = DeviceRun("m", 64, 4, 0, [level], demand, speed)
    assert step_bytes(found, level) == 200 + 4 * 10 * 3
    (written,) = device_json(found)["levels"]
    assert written["floor"]["decode_read_s"] == pytest.approx(2 * 320 / 1000)
    with console.capture() as printed:
        console.print(device_table(found))
    (row,) = [line for line in printed.get().splitlines() if "floor / step" in line]
    assert "16.0%" in row  # 0.32 s of 2 s
    assert Floor.of(work, demand, speed).mixed_read_s == pytest.approx(0.2)


def test_the_standard_forms_demand_is_that_of_its_weights(home: Path) -> None:
    model = ModelStore(home).prepare(
        str(home / "tiny"), precision="fp32", form="standard", cache_length=CONTEXT
    )
    architecture = model.manifest.architecture
    shapes = dict(architecture.tensors())
    elements = sum(math.prod(shape) for shape in shapes.values())
    elements -= math.prod(shapes["model.embed_tokens.weight"])  # rows of it are looked up
    demand = Demand.of(model.manifest, 1)
    assert demand.weight_bytes == pytest.approx(4 * elements, rel=0.02)


def test_a_device_without_memory_is_told_so(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 1 << 16

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    result, _ = run("--backend", "simulated", "--model", tiny, *ASKED)
    assert isinstance(result.exception, GeneratorLost)
    assert "failed while its speed was measured (out of memory" in result.exception.message
