"""Downloads from the Hugging Face hub."""

from __future__ import annotations

import io
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
from serve_app.models.checkpoint import Progress

__all__ = ["download"]

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


def download(repository: str, revision: str | None, downloads: Path, progress: Progress) -> Path:
    """Download the weights and data of a model, or find them downloaded.

    Args:
        repository: like org/name.
        revision: branch, tag or commit; None takes the main branch.
        downloads: folder that keeps them.
        progress: told of the bytes.

    Returns:
        The folder of the revision.

    Raises:
        ModelError: there is no such model, or it can't be reached.
    """

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
