"""From what a user names as the model to an open checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from serve_app.errors import ModelError
from serve_app.models.bundled import BUNDLED, bundled_model
from serve_app.models.checkpoint import Checkpoint, Progress, no_progress

__all__ = ["gguf_file_of", "open_checkpoint", "require_source"]

_GGUF = ".gguf"

_HUB_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


def gguf_file_of(source: str) -> Path | None:
    """Return the one file that a source names, or None where it names anything else.

    Raises:
        ModelError: the bundled model is not installed.
    """
    if source == BUNDLED:
        return bundled_model()
    path = Path(source).expanduser().absolute()
    return path if path.suffix.lower() == _GGUF and path.is_file() else None


def require_source(source: str) -> re.Match[str] | None:
    """Make sure that a source can be a model, without reading or downloading one.

    Args:
        source: see `open_checkpoint`.

    Returns:
        The parts of a hub's name, whose model may be there or not; None for what lies on the disk.

    Raises:
        ModelError: there is no such model.
    """
    if gguf_file_of(source) is not None:
        return None
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return None
    if path.is_file():
        msg = f"{path} is neither a .gguf file nor a folder of safetensors."
        raise ModelError(msg)
    match = _HUB_NAME.fullmatch(source)
    if match is None or path.suffix.lower() in (_GGUF, ".safetensors"):
        msg = (
            f"There is no model at {source}; name `{BUNDLED}`, a .gguf file, a folder of "
            "safetensors, or a hub name like org/name."
        )
        raise ModelError(msg)
    return match


def open_checkpoint(
    source: str, *, downloads: Path, progress: Progress = no_progress
) -> Checkpoint:
    """Open the checkpoint that a source names.

    Args:
        source: "bundled", a .gguf file, a folder of safetensors, or a hub name like org/name or
            org/name@revision. A file or folder that exists goes before a hub name.
        downloads: folder that keeps what comes from the hub.
        progress: told of the bytes of a download.

    Raises:
        ModelError: there is no such model, or it can't be read or reached.
    """
    # Readers are imported late, like the hub's client: whoever serves a model that is prepared
    # already needs none of them.
    if file := gguf_file_of(source):
        from serve_app.models.gguf_checkpoint import GgufCheckpoint

        return GgufCheckpoint(file, source=BUNDLED if source == BUNDLED else None)
    from serve_app.models.safetensors_checkpoint import SafetensorsCheckpoint

    match = require_source(source)
    if match is None:
        return SafetensorsCheckpoint(Path(source).expanduser().absolute())
    from serve_app.models.hub import download

    repository = match["repository"]
    folder = download(repository, match["revision"], downloads, progress)
    return SafetensorsCheckpoint(
        folder, name=repository.split("/")[1], source=f"{repository}@{folder.name}"
    )
