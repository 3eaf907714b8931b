"""From what a user names as the model to an open checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from serve_app.errors import ModelError
from serve_app.models.checkpoint import Checkpoint, Progress, no_progress
from serve_app.models.gguf_checkpoint import GgufCheckpoint, bundled_model
from serve_app.models.safetensors_checkpoint import SafetensorsCheckpoint

__all__ = ["BUNDLED", "open_checkpoint"]

BUNDLED = "bundled"

_HUB_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


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
    if source == BUNDLED:
        return GgufCheckpoint(bundled_model(), source=BUNDLED)
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            msg = f"{path} is neither a .gguf file nor a folder of safetensors."
            raise ModelError(msg)
        return GgufCheckpoint(path)
    match = _HUB_NAME.fullmatch(source)
    if match is None or path.suffix.lower() in (".gguf", ".safetensors"):
        msg = (
            f"There is no model at {source}; name `{BUNDLED}`, a .gguf file, a folder of "
            "safetensors, or a hub name like org/name."
        )
        raise ModelError(msg)
    # Imported late: whoever serves a model that is on the disk needs no client of the hub.
    from serve_app.models.hub import download

    repository = match["repository"]
    folder = download(repository, match["revision"], downloads, progress)
    return SafetensorsCheckpoint(
        folder, name=repository.split("/")[1], source=f"{repository}@{folder.name}"
    )
