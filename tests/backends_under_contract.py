"""One random decoder in every form, and the backends that run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from random_checkpoint import RandomCheckpoint, tiny_architecture

from serve_app.generation.backends.base import Backend
from serve_app.generation.backends.native import NativeBackend
from serve_app.generation.backends.onnxruntime import OnnxRuntimeBackend
from serve_app.generation.backends.tensorrt.backend import TensorRTBackend
from serve_app.generation.backends.tensorrt.simulated_device import SimulatedDevice
from serve_app.models.decoder_graph import build_decoder
from serve_app.models.decoder_interface import GRAPH_FILE, DecoderInterface
from serve_app.models.engine_build.profiles import decoder_profiles
from serve_app.models.precision.base import PrecisionName

CONTEXT = 128
CHUNK = 12

ARCHITECTURE = tiny_architecture(context_length=CONTEXT)

Make = Callable[[], Backend]


def build(folder: Path, form: str, precision: PrecisionName = "fp32") -> Path:
    """Write the decoder in a form."""
    folder.mkdir()
    build_decoder(
        RandomCheckpoint(ARCHITECTURE),
        form=form,  # type: ignore[arg-type]
        precision=precision,
        directory=folder,
        cache_length=CONTEXT if form == "standard" else None,
    )
    return folder


def open_cpu(folder: Path) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(folder, DecoderInterface.of(ARCHITECTURE), threads=1)


def open_native(folder: Path) -> NativeBackend:
    return NativeBackend(folder, DecoderInterface.of(ARCHITECTURE, "native"), threads=1)


def standard_interface() -> DecoderInterface:
    return DecoderInterface.of(ARCHITECTURE, "standard", cache_length=CONTEXT)


def simulated_device(*, slots: int = 6, **options: int) -> SimulatedDevice:
    profiles = decoder_profiles(standard_interface(), slots=slots, prefill_chunk=CHUNK)
    return SimulatedDevice(profiles, **options)


def open_tensorrt(folder: Path, device: SimulatedDevice | None = None) -> TensorRTBackend:
    device = device or simulated_device()
    return TensorRTBackend(device, device.load_engine(folder / GRAPH_FILE), standard_interface())
