"""Runs the engine of one generator replica on a GPU, or on the device that stands in for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from load.device_speed import DeviceSpeed, measure_device
from load.device_steps import EngineSteps, prefill_s, runtime_s
from load.floor import Demand
from load.timed_backend import RuntimeWork
from serve_app.errors import ConfigError
from serve_app.generation.backends.tensorrt.backend import TensorRTBackend
from serve_app.generation.backends.tensorrt.opening import open_tensorrt
from serve_app.generation.backends.tensorrt.simulated_device import SimulatedDevice
from serve_app.generation.engine import EngineConfig
from serve_app.gpu.driver import read_driver
from serve_app.models.decoder_interface import GRAPH_FILE
from serve_app.models.engine_build.profiles import decoder_profiles
from serve_app.models.store import PreparedModel
from serve_app.routing.serving import served_model, tokenizer_info
from serve_app.settings import Settings

__all__ = ["DeviceLevel", "DeviceName", "DeviceRun", "run_device_engine"]

DeviceName = Literal["tensorrt", "simulated"]

# Beside the tokens that are measured: those until all streams decode in one step.
_SLACK = 8


@dataclass(frozen=True, slots=True)
class DeviceLevel:
    """What came of one batch size.

    Attributes:
        batch: sequences that decode in each step.
        past: tokens of K/V that each of them found in its slot, on average.
        step_s: seconds between two steps' tokens, as the engine delivers them.
        runtime_s: the same with nothing around the runtime but the next call.
        work: the steps that were measured, and a piece of a prompt beside them.
    """

    batch: int
    past: float
    step_s: float
    runtime_s: float
    work: RuntimeWork


@dataclass(frozen=True, slots=True)
class DeviceRun:
    """What came of the engine on a device.

    Attributes:
        model: name, precision and form of what it ran.
        slot_tokens: tokens of a slot.
        slots: how many there are.
        streamed_bytes: weights that every step reads from the host's memory.
        levels: one per batch size.
        demand: what the decoder asks of a device.
        device: what this one can do.
    """

    model: str
    slot_tokens: int
    slots: int
    streamed_bytes: int
    levels: list[DeviceLevel]
    demand: Demand
    device: DeviceSpeed


def run_device_engine(
    settings: Settings,
    kind: DeviceName,
    batches: Sequence[int],
    *,
    past: int,
    steps: int,
    temperature: float,
    on_level: Callable[[int], None] = lambda _: None,
) -> DeviceRun:
    """Measure decode steps of some batch sizes, and a piece of a prompt, against what the device can do.

    The model is prepared first if it isn't yet; its engine must be there.

    Args:
        settings: which model and which limits, as for a generator replica; model.form is `standard`.
        kind: a GPU, or the device that is simulated in host memory, where nothing is fast and all of
            the code is the same but for the adapter to TensorRT.
        batches: batch sizes.
        past: tokens of the prompts, which each slot holds before its first step.
        steps: steps that are measured of each batch size.
        temperature: of sampling; 0 is greedy.
        on_level: told of each batch size before it begins.

    Raises:
        GpuUnavailable: there is no GPU.
        TensorRTUnavailable: TensorRT or torch's part for GPUs is missing.
        TensorRTEngineError: there is no engine that fits.
        ConfigError: a batch has more sequences than there are slots, or a slot is too short.
        GeneratorLost: the device failed.
    """
    model = served_model(settings)
    _require_room(tokenizer_info(model, settings).context_length, past, steps, batches)
    with _threads_of(kind):
        return _run(kind, model, settings, batches, past, steps, temperature, on_level)


def _run(
    kind: DeviceName,
    model: PreparedModel,
    settings: Settings,
    batches: Sequence[int],
    past: int,
    steps: int,
    temperature: float,
    on_level: Callable[[int], None],
) -> DeviceRun:
    backend, name, stated = _opened(kind, model, settings)
    interface = model.manifest.interface
    speed = measure_device(
        backend.device,
        name=name,
        stated_bytes_per_s=stated,
        dtype=getattr(torch, interface.cache_dtype),
    )
    max_len = tokenizer_info(model, settings).context_length
    wanted = EngineConfig.of(settings.generator, max_len=max_len)
    # All that decode are measured together: none waits for tokens, and none is found in a cache.
    config = dataclasses.replace(
        wanted,
        max_cached_tokens=wanted.slots * wanted.max_len,
        max_queued=wanted.slots,
        prefix_cache_bytes=0,
        prompt_slowdown=float("inf"),
    )
    with EngineSteps(backend, config) as engine:
        _require_slots(engine.slots, batches)
        measured = []
        for batch in batches:
            on_level(batch)
            measured.append(engine.measure(batch, past=past, steps=steps, temperature=temperature))
        slots = engine.slots
    chunk = min(config.prefill_chunk, config.max_len - 1)
    prompt_s = prefill_s(backend, chunk, steps=steps)
    levels = [
        DeviceLevel(
            batch=batch,
            past=found.past,
            step_s=found.step_s,
            runtime_s=runtime_s(backend, batch, past=past, steps=steps, temperature=temperature),
            work=RuntimeWork(
                decode_s=found.step_s * steps,
                mixed_s=prompt_s,
                decodes=steps,
                decoded=steps * batch,
                decode_past=round(steps * batch * found.past),
                mixed=1,
                prefilled=chunk,
                mixed_past=chunk * (chunk - 1) // 2,
            ),
        )
        for batch, found in zip(batches, measured, strict=True)
    ]
    return DeviceRun(
        model=f"{model.manifest.name} ({model.manifest.precision}, {model.manifest.form})",
        slot_tokens=backend.context_length,
        slots=slots,
        streamed_bytes=backend.streamed_bytes,
        levels=levels,
        demand=Demand.of(model.manifest, backend.token_bytes),
        device=speed,
    )


def _opened(
    kind: DeviceName, model: PreparedModel, settings: Settings
) -> tuple[TensorRTBackend, str, float | None]:
    """Open a backend; return it with the device's name and its stated bandwidth."""
    wanted = settings.generator
    weights_bytes = None if wanted.gpu_weights_mb is None else wanted.gpu_weights_mb << 20
    if kind == "tensorrt":
        gpu = read_driver().gpus[0]
        backend = open_tensorrt(model, settings.model.engines, weights_bytes=weights_bytes)
        return backend, gpu.name, gpu.memory_bytes_per_s
    profiles = decoder_profiles(
        model.manifest.interface, slots=wanted.slots, prefill_chunk=wanted.prefill_chunk
    )
    device = SimulatedDevice(profiles, memory_bytes=psutil.virtual_memory().available)
    engine = device.load_engine(model.path / GRAPH_FILE)
    return TensorRTBackend(device, engine, model.manifest.interface), "simulated device", None


@contextmanager
def _threads_of(kind: DeviceName) -> Iterator[None]:
    """Have the simulated device compute with one thread, as its runtime does.

    The engine's thread and this one would have torch's pool each, and wait for each other's.
    """
    threads = torch.get_num_threads()
    if kind == "simulated":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _require_room(max_len: int, past: int, steps: int, batches: Sequence[int]) -> None:
    # While the last prompts are computed, the first streams decode already.
    needed = past + steps + max(batches) + _SLACK
    if needed > max_len:
        msg = (
            f"A slot has {max_len} tokens, and a prompt of {past} with {steps} steps behind it takes up "
            f"to {needed}: lower --past or --steps, or raise generator.max_len and build again."
        )
        raise ConfigError(msg, param="--past")


def _require_slots(slots: int, batches: Sequence[int]) -> None:
    if max(batches) > slots:
        msg = (
            f"There are {slots} slots, and --concurrency asks for {max(batches)} at once: lower it, or "
            "raise --slots and build an engine for as many with `parley model build`."
        )
        raise ConfigError(msg, param="--concurrency")
