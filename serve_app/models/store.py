"""The model store: prepared models under PARLEY_HOME, each in a folder that is whole or not there.

A model is built in a folder beside its place, hashed, flushed to the disk and renamed into it. One
lock lets a single process at a time write to the store; whoever holds it may clear away what a
killed one left behind. Readers need no lock.
"""

from __future__ import annotations

import errno
import fcntl
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import ModelError
from serve_app.models.checkpoint import Progress, no_progress
from serve_app.models.decoder_interface import Form
from serve_app.models.manifest import MANIFEST_FILE, Manifest, SourceFile, sha256_of
from serve_app.models.precision.base import PrecisionName
from serve_app.models.preparation import Preparation, flush
from serve_app.models.recipe import Recipe
from serve_app.models.sources import gguf_file_of, open_checkpoint

__all__ = ["ModelStore", "PreparedModel"]

_LOCK = ".lock"
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"
# The disk, the user's quota, or the process's limit.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model ready to be served.

    Attributes:
        path: its folder.
        manifest: what it is.
    """

    path: Path
    manifest: Manifest

    @property
    def whole(self) -> bool:
        """Whether every file is there with its size; what is in them is not read."""
        files = self.manifest.files.items()
        return all(_size(self.path / name) == entry.bytes for name, entry in files)

    def verify(self, progress: Progress = no_progress) -> None:
        """Compare every file with the manifest's size and hash.

        Raises:
            ModelError: naming the first file that is missing or changed.
        """
        total = sum(entry.bytes for entry in self.manifest.files.values())
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            progress("verifying", done, total)

        for name, entry in self.manifest.files.items():
            path = self.path / name
            size = _size(path)
            if size is None:
                fault = "is missing"
            elif size != entry.bytes:
                fault = f"has {size} bytes instead of {entry.bytes}"
            elif sha256_of(path, on_bytes=count) != entry.sha256:
                fault = "has another content than when it was prepared"
            else:
                continue
            msg = f"{path} {fault}; `{self._prepare_command} --verify` makes the model anew."
            raise ModelError(msg)

    def verified(self, progress: Progress = no_progress) -> bool:
        """Say whether `verify` finds nothing."""
        try:
            self.verify(progress)
        except ModelError:
            return False
        return True

    @property
    def _prepare_command(self) -> str:
        made = self.manifest
        words = ["parley", "model", "prepare", made.source, "--precision", made.precision]
        words += ["--form", made.form]
        if made.cache_length is not None:
            words += ["--cache-length", str(made.cache_length)]
        return shlex.join(words)


_Check = Callable[[PreparedModel], bool]


class ModelStore:
    """The prepared models of one PARLEY_HOME.

    Attributes:
        root: folder that holds one folder per prepared model.
    """

    def __init__(self, home: Path) -> None:
        self.root = (home / "models").resolve()
        self._downloads = home / "downloads"

    def prepare(
        self,
        source: str,
        *,
        precision: PrecisionName,
        form: Form | None = None,
        cache_length: int | None = None,
        verify: bool = False,
        progress: Progress = no_progress,
    ) -> PreparedModel:
        """Return the prepared model for a source, building it where it isn't there yet.

        A prepared model is reused as long as its source, form, precision and the packages that
        prepared it are unchanged, and its files are there with their sizes. Another process that prepares at the same time is waited for.

        Args:
            source: see `open_checkpoint`.
            precision: precision of the weights.
            form: form of the decoder graph; None takes the fastest that precision and processor
                allow.
            cache_length: tokens of a slot in the standard form, see `Preparation`.
            verify: read a model's files too before it is reused.
            progress: told of stages, in bytes or tensors.

        Raises:
            ModelError: the source can't be read, is not supported, or the disk is too small.
                Nothing half-written is left.
        """

        def usable(model: PreparedModel) -> bool:
            return model.verified(progress) if verify else model.whole

        recipe = Recipe.of(precision, form, cache_length)
        if model := self._prepared_from_file(source, recipe, usable):
            return model
        checkpoint = open_checkpoint(source, downloads=self._downloads, progress=progress)
        preparation = Preparation(
            checkpoint, precision=precision, form=form, cache_length=cache_length
        )
        if model := self._recognised(preparation, usable):
            return model
        with self._locked(progress):
            # Somebody else may have prepared it while this process waited.
            if model := self._recognised(preparation, usable):
                return model
            try:
                return self._prepare(preparation, usable, progress)
            except OSError as error:
                if error.errno in _DISK_FULL:
                    raise self._disk_full(preparation) from error
                msg = f"Preparing {checkpoint.name} failed: {error}."
                raise ModelError(msg) from error

    def list(self) -> tuple[PreparedModel, ...]:
        """Return every readable prepared model, by folder name; see `damaged` for the others."""
        return tuple(
            PreparedModel(path, found)
            for path, found in self._scan()
            if isinstance(found, Manifest)
        )

    def damaged(self) -> tuple[tuple[Path, str], ...]:
        """Return the folders that hold no readable manifest, with the reason."""
        return tuple(
            (path, found.message) for path, found in self._scan() if isinstance(found, ModelError)
        )

    def find(self, name_or_path: str) -> PreparedModel:
        """Return a prepared model by its folder's name or path, or by its model's name.

        Raises:
            ModelError: there is none, or several have the name.
        """
        path = self._folder(name_or_path)
        if path is not None:
            return PreparedModel(path, Manifest.read(path))
        named = [model for model in self.list() if model.manifest.name == name_or_path]
        if len(named) == 1:
            return named[0]
        if named:
            folders = ", ".join(model.path.name for model in named)
            msg = f"Several prepared models are called {name_or_path}; name one of {folders}."
            raise ModelError(msg)
        msg = (
            f"No prepared model is called {name_or_path}; `parley model list` shows them, "
            "`parley model prepare` makes one."
        )
        raise ModelError(msg)

    def locate(self, name_or_path: str) -> Path:
        """Return the folder of a prepared model, readable or not, named as for `find`.

        Raises:
            ModelError: there is none, or several have the name.
        """
        return self._folder(name_or_path) or self.find(name_or_path).path

    def remove(self, name_or_path: str) -> Path:
        """Delete a prepared model, readable or not, and return the folder it was in.

        Raises:
            ModelError: there is none, several have the name, or it is not in this store.
        """
        path = self.locate(name_or_path)
        if path.parent != self.root or path.name.startswith("."):
            msg = (
                f"{path} is not in the model store {self.root}; delete it yourself if you mean to."
            )
            raise ModelError(msg)
        with self._locked(no_progress):
            self._clear_leftovers()
            # Out of sight at once, so that a kill in between leaves no half model.
            hidden = self.root / f"{_REPLACED}{path.name}"
            path.rename(hidden)
            shutil.rmtree(hidden)
        return path

    def _folder(self, name_or_path: str) -> Path | None:
        inside = (self.root / name_or_path).resolve()
        if inside.parent == self.root and inside.is_dir():
            return inside
        outside = Path(name_or_path).expanduser()
        return outside.resolve() if (outside / MANIFEST_FILE).is_file() else None

    def _scan(self) -> Iterator[tuple[Path, Manifest | ModelError]]:
        if not self.root.is_dir():
            return
        for path in sorted(self.root.iterdir()):
            if path.name.startswith(".") or not path.is_dir():
                continue
            try:
                yield path, Manifest.read(path)
            except ModelError as error:
                yield path, error

    def _prepared_from_file(
        self, source: str, recipe: Recipe, usable: _Check
    ) -> PreparedModel | None:
        """Find what was made of a source that is one file, without opening that file.

        Every replica that starts asks for the model, and opening a file takes longer than all else.
        """
        file = gguf_file_of(source)
        if file is None:
            return None
        sources = (SourceFile.of(file),)
        for model in self.list():
            made = model.manifest
            if recipe.made(made) and made.source_files == sources and usable(model):
                return model
        return None

    def _recognised(self, preparation: Preparation, usable: _Check) -> PreparedModel | None:
        """Find a prepared model by its source files' sizes and times, without hashing them."""
        for model in self.list():
            if preparation.yields(model.manifest, sources=preparation.sources) and usable(model):
                return model
        return None

    def _prepare(
        self, preparation: Preparation, usable: _Check, progress: Progress
    ) -> PreparedModel:
        self._clear_leftovers()
        sha256 = preparation.hash_sources(progress)
        final = self.root / preparation.folder_name(sha256)
        if model := self._same_content(final, preparation, sha256, usable):
            return model
        if shutil.disk_usage(self.root).free < preparation.needed_bytes():
            raise self._disk_full(preparation)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.root))
        try:
            manifest = preparation.build(partial, source_sha256=sha256, progress=progress)
            flush(partial)
            self._put(partial, final)
        finally:
            # Gone already where all went well; what can't be deleted now, the next prepare will.
            shutil.rmtree(partial, ignore_errors=True)
        return PreparedModel(final, manifest)

    def _same_content(
        self, final: Path, preparation: Preparation, sha256: str, usable: _Check
    ) -> PreparedModel | None:
        """Reuse a model whose source was only moved or touched, and note where it is now."""
        try:
            manifest = Manifest.read(final)
        except ModelError:
            return None  # not there, or damaged: it is built anew
        known = preparation.yields(manifest, sha256=sha256)
        if not known or not usable(PreparedModel(final, manifest)):
            return None
        manifest = manifest.model_copy(
            update={
                "source": preparation.checkpoint.source,
                "source_files": preparation.sources,
            }
        )
        beside = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.root))
        manifest.write(beside)
        flush(beside)
        (beside / MANIFEST_FILE).replace(final / MANIFEST_FILE)
        beside.rmdir()
        return PreparedModel(final, manifest)

    def _put(self, partial: Path, final: Path) -> None:
        if final.exists():
            final.rename(self.root / f"{_REPLACED}{final.name}")
        partial.rename(final)
        flush(self.root)
        self._clear_leftovers()

    def _clear_leftovers(self) -> None:
        for path in self.root.iterdir():
            if path.name.startswith((_PARTIAL, _REPLACED)):
                shutil.rmtree(path)

    def _disk_full(self, preparation: Preparation) -> ModelError:
        needed = preparation.needed_bytes()
        free = shutil.disk_usage(self.root).free
        return ModelError(
            f"Preparing {preparation.checkpoint.name} in {preparation.precision} takes about "
            f"{needed / 1e6:.0f} MB; {self.root} can take {free / 1e6:.0f} MB. Free some space, "
            "or set PARLEY_HOME to a folder on another disk."
        )

    @contextmanager
    def _locked(self, progress: Progress) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / _LOCK).open("wb")
        except OSError as error:
            msg = f"{self.root} can't be written ({error.strerror}); set PARLEY_HOME elsewhere."
            raise ModelError(msg) from error
        with lock:  # closing it, or dying, gives the lock back
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another prepare", 0, 1)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _size(path: Path) -> int | None:
    """Return a file's bytes, or None where there is no such file."""
    return path.stat().st_size if path.is_file() else None
