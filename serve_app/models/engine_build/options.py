"""How an engine is built: what a user may choose, and the builder's flags that follow from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.errors import TensorRTEngineError

__all__ = ["BuildOptions", "FlagName", "HardwareCompatibility", "Refit"]

HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]
Refit = Literal["none", "full", "stripped"]
FlagName = Literal["refit", "strip_plan", "version_compatible", "weight_streaming"]


class BuildOptions(BaseModel):
    """What decides, beside the graph and the profiles, what engine comes out.

    Attributes:
        workspace_bytes: most memory of the device that one layer may use while it runs; None leaves it
            to TensorRT, which takes what the device has.
        optimization_level: from 0, built soonest, to 5, which tries most.
        version_compatible: also for later versions of TensorRT of the same major version. The plan then
            holds code that runs on the host, and a little speed is lost.
        hardware_compatibility: which other GPUs it runs on: none but this kind, all of the same compute
            capability, or every one since Ampere. More GPUs mean fewer kernels to choose from.
        weight_streaming: weights may stay on the host, as many as the runtime says, for models that are
            larger than the device's memory.
        refit: whether weights of the same shape can replace those in the engine: `full` keeps them in
            the plan, `stripped` leaves them out, to be filled in from a graph before it runs.
        tf32: matrices in fp32 may be multiplied with 10 bits of mantissa. Without it fp32 is fp32.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    workspace_bytes: Annotated[int, Field(gt=0)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    weight_streaming: bool = False
    refit: Refit = "none"
    tf32: bool = False

    @property
    def flags(self) -> tuple[FlagName, ...]:
        """The builder's flags that are to be set, in alphabetical order."""
        wanted: dict[FlagName, bool] = {
            "refit": self.refit != "none",
            "strip_plan": self.refit == "stripped",
            "version_compatible": self.version_compatible,
            "weight_streaming": self.weight_streaming,
        }
        return tuple(name for name, set_ in wanted.items() if set_)

    def require_possible(self, compute_capability: tuple[int, int]) -> None:
        """Refuse what TensorRT can't do, before an hour is spent on it.

        Args:
            compute_capability: of the GPU that is built on.

        Raises:
            TensorRTEngineError: saying which option to drop.
        """
        if self.version_compatible and self.refit != "none":
            msg = (
                "A version-compatible engine runs on a part of TensorRT that can't refit: leave out "
                "either --version-compatible or --refit."
            )
            raise TensorRTEngineError(msg)
        if self.hardware_compatibility == "ampere_plus" and compute_capability < (8, 0):
            major, minor = compute_capability
            msg = (
                f"An engine for Ampere and later must be built there, and this GPU has compute "
                f"capability {major}.{minor}: take --hardware-compatibility same_compute_capability."
            )
            raise TensorRTEngineError(msg)
