"""Builds the Serve application from settings: the one place where the parts meet."""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from serve_app.dialogue.deployment import Dialogue
from serve_app.generation.deployment import Generator
from serve_app.ingress.deployment import Ingress
from serve_app.routing.pools import served_models
from serve_app.settings import Settings
from serve_app.tokenization.deployment import Tokenizer

__all__ = ["build"]


def build(args: dict[str, Any]) -> Application:
    """Return the application; `args` are the deploy file's, see `serve_app.settings`.

    Raises:
        ConfigError: naming each key that is unknown or wrong.
    """
    settings = Settings.load(args)
    models = served_models(settings)
    tokenizers = {model.key: _bound(Tokenizer, model.tokenizer, model.settings) for model in models}
    generators = {
        model.key: {
            pool.deployment: _bound(Generator, pool.deployment, pool.settings)
            for pool in model.pools
        }
        for model in models
    }
    dialogue = _bound(Dialogue, "Dialogue", settings, tokenizers)
    return _bound(Ingress, "Ingress", settings, dialogue, tokenizers, generators)


def _bound(deployment: Any, name: str, *args: Any) -> Application:
    application: Application = deployment.options(name=name).bind(*args)
    return application
