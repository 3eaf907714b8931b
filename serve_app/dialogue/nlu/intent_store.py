"""Fitted intent models on the disk: numbers only, under a name that says what they were fitted on."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from serve_app.dialogue.nlu.features import FEATURES_VERSION
from serve_app.dialogue.nlu.intent_model import IntentModel, fit

__all__ = ["IntentStore", "examples_digest"]

_FORMAT = 1
_ARRAYS = ("buckets", "gram_weights", "meaning_weights", "bias")


def examples_digest(examples: Mapping[str, Sequence[str]]) -> str:
    """Return a hash of the sentences, their classes and how features are made, in hex."""
    digest = blake2b(f"{_FORMAT}.{FEATURES_VERSION}".encode(), digest_size=16)
    for name, sentences in examples.items():
        for part in (name, *sentences, ""):
            digest.update(part.encode() + b"\0")
    return digest.hexdigest()


class IntentStore:
    """Keeps one model per set of examples; another set is another model.

    Args:
        folder: where the files are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, name: str, examples: Mapping[str, Sequence[str]]) -> IntentModel:
        """Return the model of these examples: the one that is stored, else a new one, stored.

        A damaged file is written anew. Models of the same name and other examples are removed.

        Args:
            name: of the persona.
            examples: sentences by class.

        Raises:
            OSError: the model can't be written.
        """
        file = self.file(name, examples)
        model = _read(file)
        if model is None:
            model = fit(examples)
            _write(file, model)
            for other in self.folder.glob(f"{name}-*.npz"):
                if other != file:
                    other.unlink(missing_ok=True)
        return model

    def file(self, name: str, examples: Mapping[str, Sequence[str]]) -> Path:
        """Return where the model of these examples is kept."""
        return self.folder / f"{name}-{examples_digest(examples)}.npz"


def _read(file: Path) -> IntentModel | None:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            labels = stored["labels"].tobytes().decode().split("\n")
            return IntentModel(tuple(labels), *(stored[name] for name in _ARRAYS))
    except (FileNotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _write(file: Path, model: IntentModel) -> None:
    content = io.BytesIO()
    labels = np.frombuffer("\n".join(model.labels).encode(), np.uint8)
    np.savez(content, labels=labels, **{name: getattr(model, name) for name in _ARRAYS})
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content.getvalue())
        Path(beside).replace(file)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
