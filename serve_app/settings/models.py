"""Which models are served, and by which pools of generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_serializer

from serve_app.settings.generator import GeneratorSettings
from serve_app.settings.section import FormName, PrecisionName, Section, ShortName

__all__ = ["FurtherModel", "FurtherPool", "ModelSettings", "ModelsSettings"]


class ModelSettings(Section):
    """Which model is served, and in which form."""

    source: str = Field(
        "bundled",
        description="`bundled`, a .gguf file, a folder of safetensors, or a hub name like org/name",
    )
    name: str | None = Field(None, description="name that clients use; null takes the model's own")
    precision: PrecisionName = Field("int8", description="precision of the weights")
    form: FormName | None = Field(
        None,
        description="form of the decoder graph: `native` is Parley's own operators, `cpu` those of "
        "ONNX Runtime, `standard` ONNX's own for TensorRT; null takes native where precision and "
        "processor allow it",
    )
    engines: Path | None = Field(
        None,
        description="folder that GPU machines share TensorRT engines through; null keeps them beside "
        "the prepared model",
    )


class _WithChanges(Section):
    """Has an engine that differs from another one in what is said of it."""

    generator: GeneratorSettings = Field(
        GeneratorSettings(), description="what its engine has otherwise than `generator`"
    )

    @field_serializer("generator")
    def _changes(self, generator: GeneratorSettings) -> dict[str, Any]:
        """Write what was said and nothing else: defaults aren't changes."""
        return generator.model_dump(mode="json", exclude_unset=True)


class FurtherModel(_WithChanges):
    """A model beside the first one."""

    source: str = Field(description="as `model.source`")
    name: str | None = Field(None, description="name that clients use; null takes its key")
    precision: PrecisionName = Field("int8", description="precision of the weights")
    form: FormName | None = Field(None, description="form of the decoder graph, as `model.form`")
    engines: Path | None = Field(
        None, description="as `model.engines`; null takes the first model's"
    )


class FurtherPool(_WithChanges):
    """A further pool of generators of a model."""

    model: ShortName | None = Field(
        None, description="key of its model in `models.also`; null is the first model"
    )
    precision: PrecisionName | None = Field(
        None, description="precision of the weights; null takes the model's"
    )
    form: FormName | None = Field(
        None,
        description="form of the graph; null takes the model's with its precision, else the fastest",
    )
    engines: Path | None = Field(None, description="as `model.engines`; null takes the model's")


class ModelsSettings(Section):
    """Models beside the first one, and further pools of generators."""

    also: dict[ShortName, FurtherModel] = Field(
        {},
        description="further models, by a key: each has the deployments Generator-KEY and Tokenizer-KEY",
    )
    pools: dict[ShortName, FurtherPool] = Field(
        {},
        description="further pools of a model's generators, by a key: each is the deployment Generator-KEY",
    )
