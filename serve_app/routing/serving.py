"""The model that the settings name, prepared on this machine, as each deployment needs it."""

from __future__ import annotations

from serve_app.errors import ConfigError
from serve_app.messages.tokenization import TokenizerInfo
from serve_app.models.preparation import chosen_form
from serve_app.models.store import ModelStore, PreparedModel
from serve_app.settings import ModelSettings, Settings, parley_home

__all__ = ["require_servable", "served_model", "tokenizer_info"]


def require_servable(model: ModelSettings) -> None:
    """Refuse a form that can be prepared, but not served.

    Raises:
        ConfigError: saying which setting to change.
    """
    if chosen_form(model.precision, model.form) != "standard":
        return
    msg = (
        f"{model.precision} in the standard form is for TensorRT on a GPU, and nothing serves it "
        "yet; to serve on a CPU, set model.precision to int8 or fp32, and model.form to cpu or null."
    )
    raise ConfigError(msg, param="model.form")


def served_model(settings: Settings) -> PreparedModel:
    """Return the served model, prepared first where this machine doesn't have it yet.

    Raises:
        ConfigError: nothing serves its form.
        ModelError: it can't be prepared.
    """
    model = settings.model
    require_servable(model)
    return ModelStore(parley_home()).prepare(
        model.source, precision=model.precision, form=model.form
    )


def tokenizer_info(model: PreparedModel, settings: Settings) -> TokenizerInfo:
    """Return what callers may know of the model; its context is what a slot has room for."""
    manifest = model.manifest
    return TokenizerInfo(
        model=settings.model.name or manifest.name,
        vocab_size=manifest.vocab_size,
        context_length=min(manifest.context_length, settings.generator.max_len),
        eos_token_ids=manifest.eos_token_ids,
        created=manifest.created,
    )
