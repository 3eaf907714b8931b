"""The model that the settings name, prepared on this machine, as each deployment needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from serve_app.errors import ConfigError, GpuUnavailable, TensorRTUnavailable
from serve_app.messages.tokenization import TokenizerInfo
from serve_app.models.checkpoint import Progress, no_progress
from serve_app.models.recipe import chosen_form
from serve_app.models.store import ModelStore, PreparedModel
from serve_app.settings import Settings, parley_home

if TYPE_CHECKING:
    from serve_app.models.engine_build.machine import Machine

__all__ = [
    "BackendName",
    "chosen_backend",
    "prepare_served",
    "require_engine",
    "require_servable",
    "served_model",
    "tokenizer_info",
]

BackendName = Literal["onnxruntime", "tensorrt", "simulated"]


def chosen_backend(settings: Settings) -> BackendName:
    """Return what computes logits: TensorRT for a model in the standard form, else a CPU.

    Raises:
        ModelError: this machine can't run the form.
    """
    if settings.generator.backend == "simulated":
        return "simulated"
    form = chosen_form(settings.model.precision, settings.model.form)
    return "tensorrt" if form == "standard" else "onnxruntime"


def require_servable(settings: Settings) -> Machine | None:
    """Refuse a form that nothing on this machine can serve.

    Returns:
        The GPU and TensorRT that will, or None if a CPU will.

    Raises:
        ConfigError: saying what is missing, and which setting to change instead.
        ModelError: this machine can't run the form.
    """
    if chosen_backend(settings) != "tensorrt":
        return None
    # Late, here and below: whoever serves on a CPU builds no engines.
    from serve_app.models.engine_build.machine import open_machine

    try:
        return open_machine()
    except (GpuUnavailable, TensorRTUnavailable) as error:
        msg = (
            f"{settings.model.precision} in the standard form is for TensorRT on a GPU. {error.message} "
            "To serve on a CPU, set model.precision to int8 or fp32, and model.form to cpu or null."
        )
        raise ConfigError(msg, param="model.form") from error


def require_engine(model: PreparedModel, machine: Machine, settings: Settings) -> None:
    """Refuse a model without an engine for this machine's GPU.

    Raises:
        TensorRTEngineError: with what is wrong with those there are, and what to do.
    """
    from serve_app.models.engine_build.model_engine import find_model_engine

    find_model_engine(model, machine.environment, settings.model.engines)


def served_model(settings: Settings) -> PreparedModel:
    """Return the served model, prepared first where this machine doesn't have it yet.

    Raises:
        ModelError: it can't be prepared.
    """
    return prepare_served(parley_home(), settings)


def prepare_served(
    home: Path, settings: Settings, progress: Progress = no_progress
) -> PreparedModel:
    """Return the served model out of a home, see `served_model`.

    Args:
        home: PARLEY_HOME.
        settings: which model. In the standard form, a slot has generator.max_len tokens.
        progress: told of stages.

    Raises:
        ModelError: it can't be prepared.
    """
    model = settings.model
    return ModelStore(home).prepare(
        model.source,
        precision=model.precision,
        form=model.form,
        cache_length=settings.generator.max_len,
        progress=progress,
    )


def tokenizer_info(
    model: PreparedModel, settings: Settings, *, max_len: int | None = None
) -> TokenizerInfo:
    """Return what callers may know of the model; its context is what a slot has room for.

    Args:
        model: as it is prepared.
        settings: its own.
        max_len: tokens that a slot has room for in every one of the model's pools; None takes the settings'.
    """
    manifest = model.manifest
    return TokenizerInfo(
        model=settings.model.name or manifest.name,
        vocab_size=manifest.vocab_size,
        context_length=min(manifest.context_length, max_len or settings.generator.max_len),
        eos_token_ids=manifest.eos_token_ids,
        created=manifest.created,
    )
