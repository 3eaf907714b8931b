"""The model that the settings name, prepared on this machine, as each deployment needs it."""

from __future__ import annotations

from serve_app.messages.tokenization import TokenizerInfo
from serve_app.models.store import ModelStore, PreparedModel
from serve_app.settings import Settings, parley_home

__all__ = ["served_model", "tokenizer_info"]


def served_model(settings: Settings) -> PreparedModel:
    """Return the served model, prepared first where this machine doesn't have it yet.

    Raises:
        ModelError: it can't be prepared.
    """
    model = settings.model
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
