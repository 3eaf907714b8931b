"""What a prepared model says about itself: where it comes from, what it is, and its files' hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import serve_app
from serve_app.errors import ModelError
from serve_app.models.architecture import Architecture
from serve_app.models.decoder_interface import DecoderInterface, Form
from serve_app.models.precision.base import PrecisionName
from serve_app.models.precision.named import states_of

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "FileEntry",
    "Manifest",
    "SourceFile",
    "sha256_of",
    "tool_versions",
]

MANIFEST_FILE = "manifest.json"
# Raised whenever a prepared folder of the version before could not be served as it is.
FORMAT_VERSION = 1

_TOOLS = ("gguf", "numpy", "onnx", "onnxruntime", "tokenizers")
_CHUNK = 1 << 22

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """One file of the prepared folder."""

    bytes: Size
    sha256: Sha256


class SourceFile(_Part):
    """One file the model was prepared from, recognised without reading it again."""

    path: str
    bytes: Size
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Describe a file as it is now."""
        status = path.stat()
        return cls(path=str(path), bytes=status.st_size, modified_ns=status.st_mtime_ns)


class Manifest(_Part):
    """The manifest of a prepared model, `manifest.json` in its folder.

    Attributes:
        format_version: version of the folder's layout and of the graph's interface.
        name: the model's own name.
        source: "bundled", a path, or a hub name with its revision.
        source_sha256: hash over the names and contents of all source files.
        source_files: the source files, to see quickly that they are unchanged.
        architecture: what the weights are for.
        form: form of the decoder graph.
        precision: precision of its weights.
        cache_length: tokens of a slot where the graph fixes them, else None.
        context_length: most tokens in one sequence.
        vocab_size: number of token ids.
        eos_token_ids: tokens that end a turn.
        bos_token_id: token that starts a text, or None.
        created: Unix seconds at which the model was prepared.
        tools: versions of the packages that prepared it.
        files: size and hash of every other file in the folder.
    """

    format_version: int
    name: str
    source: str
    source_sha256: Sha256
    source_files: tuple[SourceFile, ...]
    architecture: Architecture
    form: Form
    precision: PrecisionName
    cache_length: int | None = None
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    created: int
    tools: dict[str, str]
    files: dict[str, FileEntry]

    @property
    def interface(self) -> DecoderInterface:
        """What an engine must know of the decoder graph to feed it."""
        return DecoderInterface.of(
            self.architecture,
            self.form,
            dtype=states_of(self.precision, self.form),
            cache_length=self.cache_length,
        )

    @property
    def is_current(self) -> bool:
        """Whether this version of Parley, with its packages, would prepare the same folder."""
        return self.format_version == FORMAT_VERSION and self.tools == tool_versions()

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read the manifest of a prepared folder.

        Raises:
            ModelError: there is none, or it is broken.
        """
        path = directory / MANIFEST_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            msg = f"{directory} is not a prepared model: {MANIFEST_FILE} can't be read ({error.strerror})."
            raise ModelError(msg) from error
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            key = ".".join(str(part) for part in fault["loc"]) or "JSON"
            msg = f"{path} is broken ({key}: {fault['msg']}); prepare the model again."
            raise ModelError(msg) from None

    def write(self, directory: Path) -> None:
        """Write the manifest into a folder."""
        text = self.model_dump_json(indent=2) + "\n"
        (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")


def tool_versions() -> dict[str, str]:
    """Return the versions of Parley and of the packages that decide what a prepared folder holds."""
    return {"parley": serve_app.__version__, **{tool: version(tool) for tool in _TOOLS}}


def sha256_of(path: Path, *, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Hash a file's content.

    Args:
        path: the file.
        on_bytes: told of every number of bytes read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()
