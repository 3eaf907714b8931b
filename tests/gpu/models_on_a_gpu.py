"""Tiny models, their engines on a GPU, and what comes out of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from engine_driver import request, running
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import write_folder

from serve_app.generation.backends.base import Backend
from serve_app.generation.backends.opening import open_backend
from serve_app.messages.generation import GenerateRequest
from serve_app.models.decoder_interface import Form
from serve_app.models.engine_build.engine_store import Engine
from serve_app.models.engine_build.machine import Machine
from serve_app.models.engine_build.model_engine import build_model_engine
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.precision.base import PrecisionName
from serve_app.models.store import ModelStore, PreparedModel

if TYPE_CHECKING:
    from serve_app.generation.backends.tensorrt.backend import TensorRTBackend

CONTEXT = 128
SLOTS = 6
CHUNK = 12

WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1.2, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 20, "min_p": 0.01},
    {"temperature": 0.9, "presence_penalty": 1.1, "frequency_penalty": 0.4},
    {"temperature": 0.6, "logprobs": 3},
]


class ModelsOnGpu:
    """Models and engines on one machine with a GPU.

    Args:
        machine: GPU and TensorRT.
        home: keeps models, their engines and timing caches.
        simulated: whether the GPU is none.
    """

    def __init__(self, machine: Machine, home: Path, *, simulated: bool) -> None:
        self.machine = machine
        self.home = home
        self.simulated = simulated

    def prepared(
        self, form: Form = "standard", precision: PrecisionName = "fp32", name: str = "tiny"
    ) -> PreparedModel:
        """Return a tiny model, prepared; each name has weights of its own."""
        if not (self.home / name).exists():
            write_folder(self.home / name)
            weights = self.home / name / "model.safetensors"
            seed = sum(name.encode())
            rolled = {key: np.roll(tensor, seed) for key, tensor in load_file(weights).items()}
            save_file(rolled, weights)
        return ModelStore(self.home).prepare(
            str(self.home / name), precision=precision, form=form, cache_length=CONTEXT
        )

    def built(self, model: PreparedModel, options: BuildOptions | None = None) -> Engine:
        """Return an engine of a model, built where it isn't there yet."""
        return build_model_engine(
            model,
            self.machine,
            slots=SLOTS,
            prefill_chunk=CHUNK,
            options=options or BuildOptions(),
            home=self.home,
        )

    def opened(self, model: PreparedModel, *, gpu_weights_mb: int | None = None) -> TensorRTBackend:
        """Open a model's newest engine."""
        from serve_app.generation.backends.tensorrt.backend import TensorRTBackend

        backend = open_backend(model, threads=1, gpu_weights_mb=gpu_weights_mb)
        assert isinstance(backend, TensorRTBackend)
        return backend

    def backend(self, precision: PrecisionName = "fp32") -> TensorRTBackend:
        """Open the engine of the model `tiny`, built as it is by default."""
        model = self.prepared(precision=precision)
        self.built(model)
        return self.opened(model)

    def on_cpu(self, name: str = "tiny") -> Backend:
        """Open a tiny model on the CPU."""
        return open_backend(self.prepared("cpu", name=name), threads=1)


def asked() -> list[GenerateRequest]:
    """Return a request for each way to choose tokens."""
    return [
        request(
            tuple(range(5, 12 + 3 * number)), max_tokens=20 + number, **(way | {"seed": number})
        )
        for number, way in enumerate(WAYS)
    ]


def replies(backend: Backend, asked: list[GenerateRequest], **limits: Any) -> list[list[int]]:
    """Return the tokens of each request, all of them asked at once."""
    limits = {"max_len": CONTEXT, "max_cached_tokens": 1024, "prefix_block": 16} | limits
    with running(backend, **limits) as (engine, listener):
        for each in asked:
            engine.submit(each)
        return [listener.reply(each) for each in asked]
