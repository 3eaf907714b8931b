"""One prepared folder: what it must be, what it will take, and how it is built."""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from serve_app.models.checkpoint import Checkpoint, Progress
from serve_app.models.decoder_graph import build_decoder
from serve_app.models.decoder_interface import Form
from serve_app.models.manifest import (
    FORMAT_VERSION,
    FileEntry,
    Manifest,
    SourceFile,
    sha256_of,
    tool_versions,
)
from serve_app.models.precision.base import PrecisionName
from serve_app.models.recipe import Recipe

__all__ = ["Preparation", "flush"]

# Tokenizer, graph and manifest, and some air: a disk should not be filled to its last byte.
_RESERVE = 64 << 20


class Preparation:
    """A checkpoint that is to become a prepared folder of a certain form and precision.

    Attributes:
        checkpoint: where weights and tokenizer come from.
        precision: precision of the weights.
        form: form of the decoder graph.
        cache_length: tokens of a slot where the form fixes them, else None.
        sources: the checkpoint's files as they are now.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: PrecisionName,
        form: Form | None,
        cache_length: int | None = None,
    ) -> None:
        """Describe what is to be prepared.

        Args:
            checkpoint: where weights and tokenizer come from.
            precision: precision of the weights.
            form: form of the decoder graph, or None; see `Recipe.of`.
            cache_length: tokens of a slot in the standard form, or None; see `Recipe.of`.

        Raises:
            ModelError: this machine can't run the form.
        """
        self._recipe = Recipe.of(precision, form, cache_length)
        self.checkpoint = checkpoint
        self.precision = precision
        self.form = self._recipe.form
        self.cache_length = self._recipe.cache_length_for(checkpoint.architecture)
        self.sources = tuple(SourceFile.of(path) for path in checkpoint.files)

    def yields(
        self,
        manifest: Manifest,
        *,
        sources: tuple[SourceFile, ...] | None = None,
        sha256: str | None = None,
    ) -> bool:
        """Say whether building now would give what the manifest describes.

        Args:
            manifest: of a folder prepared earlier.
            sources: source files that it must have been built from, or None.
            sha256: hash of the sources that it must have been built from, or None.
        """
        return (
            self._recipe.made(manifest)
            and manifest.architecture == self.checkpoint.architecture
            and (sources is None or manifest.source_files == sources)
            and (sha256 is None or manifest.source_sha256 == sha256)
        )

    def folder_name(self, source_sha256: str) -> str:
        """Return the folder's name: safe for any file system, told apart by the source's hash."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.checkpoint.name).strip(".-") or "model"
        form = self.form if self.cache_length is None else f"{self.form}-{self.cache_length}"
        return f"{name[:80]}-{self.precision}-{form}-{source_sha256[:8]}"

    def needed_bytes(self) -> int:
        """Estimate from above what the folder takes on the disk."""
        architecture = self.checkpoint.architecture
        elements = sum(math.prod(shape) for _, shape in architecture.tensors())
        rotary_tables = architecture.context_length * architecture.head_dim * 4
        # One byte an element, and up to 7 bytes for every 32 of them: scales, and what aligns them.
        blocks = elements * 39 // 32
        # The standard form has its 8 bits in the projections alone.
        if self.form == "standard":
            blocks += architecture.vocab_size * architecture.hidden
        weights = {
            "fp32": elements * 4,
            "fp16": elements * 2,
            "bf16": elements * 2,
            "int8": blocks,
            "fp8": blocks,
            # Beside which the model in fp32 lies meanwhile, to see how large inputs get.
            "int8-w8a8": blocks + elements * 4,
            "fp8-w8a8": blocks + elements * 4,
        }[self.precision]
        return weights + rotary_tables + _RESERVE

    def hash_sources(self, progress: Progress) -> str:
        """Return the hash over names and contents of the source files."""
        hashes = _hash_files(self.checkpoint.files, "hashing the source", progress)
        lines = "".join(f"{name}\0{entry.sha256}\n" for name, entry in hashes.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    def build(self, directory: Path, *, source_sha256: str, progress: Progress) -> Manifest:
        """Write tokenizer, decoder graph and manifest into a folder that exists and is empty.

        Raises:
            ModelError: the checkpoint can't be used.
            OSError: the disk is full or the folder can't be written.
        """
        architecture = self.checkpoint.architecture
        tokenizer = self.checkpoint.tokenizer()
        tokenizer.check(vocab_size=architecture.vocab_size, where=self.checkpoint.source)
        tokenizer.write(directory)
        build_decoder(
            self.checkpoint,
            form=self.form,
            precision=self.precision,
            directory=directory,
            cache_length=self.cache_length,
            progress=progress,
        )
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=self.checkpoint.name,
            source=self.checkpoint.source,
            source_sha256=source_sha256,
            source_files=self.sources,
            architecture=architecture,
            form=self.form,
            precision=self.precision,
            cache_length=self.cache_length,
            context_length=self.cache_length or architecture.context_length,
            vocab_size=architecture.vocab_size,
            eos_token_ids=tokenizer.eos_token_ids,
            bos_token_id=tokenizer.bos_token_id,
            created=int(time.time()),
            tools=tool_versions(),
            files=_hash_files(sorted(directory.iterdir()), "hashing the model", progress),
        )
        manifest.write(directory)
        return manifest


def flush(directory: Path) -> None:
    """Force a folder's files, and the folder itself, onto the disk."""
    for path in (*(file for file in directory.iterdir() if file.is_file()), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _hash_files(paths: Sequence[Path], stage: str, progress: Progress) -> dict[str, FileEntry]:
    sizes = {path: path.stat().st_size for path in paths}
    total, done = sum(sizes.values()), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(stage, done, total)

    return {
        path.name: FileEntry(bytes=size, sha256=sha256_of(path, on_bytes=count))
        for path, size in sizes.items()
    }
