"""JSON files of somebody else's making, read with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serve_app.errors import ModelError

__all__ = ["parse_json_object", "read_json_object"]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ModelError: the file can't be read or holds something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"{path} can't be read: {error.strerror}."
        raise ModelError(msg) from error
    return parse_json_object(content, where=str(path))


def parse_json_object(content: bytes, *, where: str) -> dict[str, Any]:
    """Parse bytes that hold one JSON object.

    Raises:
        ModelError: naming `where`, if they hold something else.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        msg = f"{where} is not valid JSON ({error}); the file is broken, get it again."
        raise ModelError(msg) from error
    if not isinstance(value, dict):
        msg = f"{where} must hold a JSON object, not {type(value).__name__}."
        raise ModelError(msg)
    return value
