"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serve_app.messages.tokenization import TokenizerInfo

__all__ = ["model_list", "model_object"]


def model_object(model: TokenizerInfo) -> dict[str, Any]:
    """Return a served model as a client sees it."""
    return {
        "id": model.model,
        "object": "model",
        "created": model.created,
        "owned_by": "parley",
        "parley": {"context_length": model.context_length},
    }


def model_list(models: Iterable[TokenizerInfo]) -> dict[str, Any]:
    """Return all served models."""
    return {"object": "list", "data": [model_object(model) for model in models]}
