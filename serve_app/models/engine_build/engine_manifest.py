"""What an engine says about itself, and whether it is for this model, this TensorRT and this GPU."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import TensorRTEngineError
from serve_app.gpu.driver import Gpu
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.engine_build.profiles import EngineProfile
from serve_app.models.manifest import MANIFEST_FILE, FileEntry

__all__ = [
    "ENGINE_FORMAT_VERSION",
    "PLAN_FILE",
    "EngineEnvironment",
    "EngineManifest",
    "GpuArchitecture",
    "no_plan",
]

PLAN_FILE = "engine.plan"
# Raised whenever an engine folder of the version before could not be used as it is.
ENGINE_FORMAT_VERSION = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_AMPERE = (8, 0)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GpuArchitecture(_Part):
    """The GPU that an engine was built on.

    Attributes:
        name: as the driver gives it.
        compute_capability: (major, minor).
    """

    name: str
    compute_capability: tuple[int, int]

    @classmethod
    def of(cls, gpu: Gpu) -> GpuArchitecture:
        """Describe a GPU."""
        return cls(name=gpu.name, compute_capability=gpu.compute_capability)

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} (compute capability {major}.{minor})"


@dataclass(frozen=True, slots=True)
class EngineEnvironment:
    """What an engine is to run on.

    Attributes:
        tensorrt: version of TensorRT.
        gpu: the GPU.
    """

    tensorrt: str
    gpu: GpuArchitecture


class EngineManifest(_Part):
    """The manifest of an engine, `manifest.json` in its folder.

    Attributes:
        format_version: version of the folder's layout.
        model: name of the model, for people.
        model_sha256: hash of the graph and its weights that the engine computes.
        structure_sha256: hash of the graph without weights, which a refit must match.
        tensorrt: version of TensorRT that built it.
        gpu: the GPU that it was built on.
        options: how it was built.
        profiles: its optimization profiles, in the order of their numbers.
        plan: size and hash of the serialized engine.
        created: Unix seconds at which it was written.
        parley: version of Parley that had it built.
    """

    format_version: int
    model: str
    model_sha256: Sha256
    structure_sha256: Sha256
    tensorrt: str
    gpu: GpuArchitecture
    options: BuildOptions
    profiles: tuple[EngineProfile, ...]
    plan: FileEntry
    created: int
    parley: str

    @property
    def needs_weights(self) -> bool:
        """Whether the plan lacks its weights, so that it must be refitted before it runs."""
        return self.options.refit == "stripped"

    @property
    def holds_host_code(self) -> bool:
        """Whether the runtime must be told that the plan may run code of its own on the host."""
        return self.options.version_compatible

    @property
    def decodes(self) -> bool:
        """Whether it has the profiles that a replica runs, in their order; see `decoder_profiles`."""
        return [profile.name for profile in self.profiles] == ["prefill", "decode"]

    @property
    def folder_name(self) -> str:
        """Name of the engine's folder: GPU, TensorRT, and a hash of everything that was asked for."""
        asked = "\0".join(
            (
                self.gpu.name,
                self.options.model_dump_json(),
                *(profile.model_dump_json() for profile in self.profiles),
            )
        )
        major, minor = self.gpu.compute_capability
        digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
        return f"sm{major}{minor}-trt{self.tensorrt}-{digest}"

    def describes_same(self, other: EngineManifest) -> bool:
        """Say whether another manifest is of the same engine, whenever and by whatever Parley it was built."""
        told_apart = {"plan", "created", "parley", "model"}
        return self.model_dump(exclude=told_apart) == other.model_dump(exclude=told_apart)

    def misfits(self, model_sha256: str, environment: EngineEnvironment) -> Iterator[str]:
        """Yield each reason why the engine can't compute a model here, with what differs."""
        if self.format_version != ENGINE_FORMAT_VERSION:
            yield (
                f"its folder is of format {self.format_version}, and this Parley reads "
                f"{ENGINE_FORMAT_VERSION}"
            )
        if self.model_sha256 != model_sha256:
            yield "it holds the weights of another model, or of another preparation of this one"
        if not self._runs_on_version(environment.tensorrt):
            yield f"TensorRT {self.tensorrt} built it, and this is {environment.tensorrt}"
        if not self._runs_on_gpu(environment.gpu):
            yield f"it was built on {self.gpu}, and this is {environment.gpu}"

    def _runs_on_version(self, version: str) -> bool:
        if not self.options.version_compatible:
            return version == self.tensorrt
        here, built = _numbers(version), _numbers(self.tensorrt)
        return here[0] == built[0] and here >= built

    def _runs_on_gpu(self, gpu: GpuArchitecture) -> bool:
        match self.options.hardware_compatibility:
            case "none":
                return gpu == self.gpu
            case "same_compute_capability":
                return gpu.compute_capability == self.gpu.compute_capability
            case "ampere_plus":
                return gpu.compute_capability >= _AMPERE

    @classmethod
    def read(cls, directory: Path) -> EngineManifest:
        """Read the manifest of an engine's folder.

        Raises:
            TensorRTEngineError: there is none, or it is broken.
        """
        path = directory / MANIFEST_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            msg = f"{directory} is no engine: {MANIFEST_FILE} can't be read ({error.strerror})."
            raise TensorRTEngineError(msg) from error
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            key = ".".join(str(part) for part in fault["loc"]) or "JSON"
            msg = (
                f"{path} is broken ({key}: {fault['msg']}); delete its folder and build the engine "
                "again with `parley model build`."
            )
            raise TensorRTEngineError(msg) from None

    def write(self, directory: Path) -> None:
        """Write the manifest into a folder."""
        text = self.model_dump_json(indent=2) + "\n"
        (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")


def no_plan() -> FileEntry:
    """Return what stands for the plan of an engine that is not built yet: an empty file."""
    return FileEntry(bytes=0, sha256=hashlib.sha256().hexdigest())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
