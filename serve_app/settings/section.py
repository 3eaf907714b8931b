"""What all sections have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = ["FormName", "Positive", "PrecisionName", "Seconds", "Section", "ShortName"]

PrecisionName = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int8-w8a8", "fp8-w8a8"]
FormName = Literal["cpu", "native", "standard"]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
# It becomes part of a deployment's name, of log files' and of metrics' labels.
ShortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
