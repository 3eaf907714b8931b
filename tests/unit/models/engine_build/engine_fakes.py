"""A tiny standard model, a GPU, and a TensorRT that builds nothing and notes everything."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file, save_file
from tiny_checkpoints import write_folder

from serve_app.gpu.driver import Gpu
from serve_app.models.engine_build.compiler import (
    BuildRequest,
    CompilerRefusal,
    PhaseListener,
    TimingCacheRefusal,
)
from serve_app.models.store import ModelStore, PreparedModel

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000, 80_000_000_000)


@dataclass
class FakeCompiler:
    """Stands in for TensorRT: an `EngineCompiler` whose plans say what they were built of.

    Attributes:
        version: what it says it is.
        requests: every build.
        refits: every refit.
        refusal: raised by builds and refits.
        refuses_cache: whether a timing cache that isn't empty is refused.
    """

    version: str = "11.4.0.106"
    requests: list[BuildRequest] = field(default_factory=list)
    refits: list[tuple[Path, Path]] = field(default_factory=list)
    refusal: Exception | None = None
    refuses_cache: bool = False

    def build(self, request: BuildRequest, listener: PhaseListener) -> bytes:
        if self.refuses_cache and request.timing_cache:
            raise TimingCacheRefusal(["the cache is of another device"])
        self.requests.append(request)
        listener.phase_started("Building", None, 2)
        for step in range(2):
            if not listener.step_completed("Building", step):
                raise CompilerRefusal(["cancelled"])
        listener.phase_finished("Building")
        if self.refusal is not None:
            request.plan.write_bytes(b"half")
            raise self.refusal
        request.plan.write_text(json.dumps({"flags": request.options.flags}))
        return request.timing_cache + b"measured;"

    def refit(self, plan: Path, graph: Path, refitted: Path) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.refits.append((plan, graph))
        refitted.write_bytes(plan.read_bytes() + b" refitted")


def prepare(
    home: Path, folder: Path, *, scale: float = 1.0, cache_length: int = 64
) -> PreparedModel:
    """Prepare a tiny model in the standard form, with its weights multiplied by a number."""
    write_folder(folder)
    file = folder / "model.safetensors"
    weights = {name: array * array.dtype.type(scale) for name, array in load_file(file).items()}
    save_file(weights, file)
    return ModelStore(home).prepare(
        str(folder), precision="fp16", form="standard", cache_length=cache_length
    )
