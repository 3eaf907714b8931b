"""From what a user names as the model to an open checkpoint; downloads from the Hugging Face hub."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils.tqdm import tqdm

from serve_app.errors import ModelError
from serve_app.models.checkpoint import Checkpoint, Progress, no_progress
from serve_app.models.gguf_checkpoint import GgufCheckpoint, bundled_model
from serve_app.models.safetensors_checkpoint import SafetensorsCheckpoint

__all__ = ["BUNDLED", "open_checkpoint"]

BUNDLED = "bundled"

_HUB_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
# Weights and data only: no code, no pickle.
_ALLOWED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)


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
    repository = match["repository"]
    folder = _download(repository, match["revision"], downloads, progress)
    return SafetensorsCheckpoint(
        folder, name=repository.split("/")[1], source=f"{repository}@{folder.name}"
    )


def _download(repository: str, revision: str | None, downloads: Path, progress: Progress) -> Path:
    class Bar(tqdm):
        """Passes the byte count on and draws nothing."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            options |= {"file": io.StringIO(), "disable": False}
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            if self._counts_bytes:
                progress("downloading", int(self.n), int(self.total or 0))

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=downloads,
                allow_patterns=list(_ALLOWED),
                tqdm_class=Bar,
            )
        )
    except GatedRepoError as error:
        msg = f"{repository} needs a login: accept its terms on the hub and set HF_TOKEN."
        raise ModelError(msg) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        msg = f"There is no model {repository} on the hub or on this disk; check the name."
        raise ModelError(msg) from error
    except RevisionNotFoundError as error:
        msg = f"{repository} has no revision {revision}; check it on the hub."
        raise ModelError(msg) from error
    except (httpx2.HTTPError, XetDownloadError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = (
            f"{repository} can't be downloaded ({reason}). Check the network, or get the folder "
            "another way and give its path."
        )
        raise ModelError(msg) from error
