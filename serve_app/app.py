"""Builds the Serve application from settings: the one place where the parts meet."""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from serve_app.dialogue.deployment import Dialogue
from serve_app.generation.deployment import Generator
from serve_app.ingress.deployment import Ingress
from serve_app.settings import Settings
from serve_app.tokenization.deployment import Tokenizer

__all__ = ["build"]


def build(args: dict[str, Any]) -> Application:
    """Return the application; `args` are the deploy file's, see `serve_app.settings`.

    Raises:
        ConfigError: naming each key that is unknown or wrong.
    """
    settings = Settings.load(args)
    tokenizer = Tokenizer.bind(settings)  # type: ignore[attr-defined]
    dialogue = Dialogue.bind(settings, tokenizer)  # type: ignore[attr-defined]
    generator = Generator.bind(settings)  # type: ignore[attr-defined]
    ingress: Application = Ingress.bind(settings, dialogue, tokenizer, generator)  # type: ignore[attr-defined]
    return ingress
