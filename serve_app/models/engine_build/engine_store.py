"""Engines in a folder: each in a folder of its own that is whole or not there.

The folder is `engines` in that of the prepared model, or one that several machines share. There the
engines of a model lie below the model's hash.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import TensorRTEngineError
from serve_app.models.checkpoint import Progress, no_progress
from serve_app.models.engine_build.engine_manifest import (
    PLAN_FILE,
    EngineEnvironment,
    EngineManifest,
)
from serve_app.models.manifest import sha256_of
from serve_app.models.preparation import flush

__all__ = ["Engine", "EngineStore"]

_PARTIAL = ".partial-"
_REPLACED = ".replaced-"
_BUILD = "`parley model build` builds one for this machine"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine on the disk.

    Attributes:
        path: its folder.
        manifest: what it is.
    """

    path: Path
    manifest: EngineManifest

    @property
    def plan(self) -> Path:
        """The serialized engine."""
        return self.path / PLAN_FILE

    @property
    def whole(self) -> bool:
        """Whether the plan is there with its size; its content is not read."""
        return self.plan.is_file() and self.plan.stat().st_size == self.manifest.plan.bytes

    def require_fit(
        self, model_sha256: str, environment: EngineEnvironment, *, to_run: bool = True
    ) -> None:
        """Refuse an engine that is for something else than what is here.

        Args:
            model_sha256: hash of the model that it must hold.
            environment: TensorRT and GPU of this machine.
            to_run: refuse what no replica can run too: a stripped one, or one with profiles of somebody's own.

        Raises:
            TensorRTEngineError: with everything that differs, and what to do.
        """
        faults = [*self.manifest.misfits(model_sha256, environment)]
        if to_run and self.manifest.needs_weights:
            faults.append("it was built without its weights, which `parley model refit` puts in")
        if to_run and not self.manifest.decodes:
            faults.append("its profiles are others than prefill and decode, which a replica runs")
        if not self.whole:
            faults.append(f"{PLAN_FILE} is missing, or not as long as it was")
        if faults:
            msg = f"The engine {self.path} can't be used: {'; '.join(faults)}; {_BUILD}."
            raise TensorRTEngineError(msg)

    def verify(self, progress: Progress = no_progress) -> None:
        """Compare the plan with the manifest's hash.

        Raises:
            TensorRTEngineError: it has changed.
        """
        total, done = self.manifest.plan.bytes, 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            progress("verifying the engine", done, total)

        if not self.whole or sha256_of(self.plan, on_bytes=count) != self.manifest.plan.sha256:
            msg = f"{self.plan} is not as it was built; delete {self.path}, then {_BUILD}."
            raise TensorRTEngineError(msg)


class EngineStore:
    """The engines of one model.

    Attributes:
        root: folder that holds one folder per engine.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of(cls, model_folder: Path, model_sha256: str, shared: Path | None = None) -> EngineStore:
        """Return where the engines of a model lie.

        Args:
            model_folder: folder of the graph.
            model_sha256: its hash.
            shared: folder that several machines take engines from; None keeps them beside the graph.
        """
        return cls(model_folder / "engines" if shared is None else shared / model_sha256[:16])

    def find(self, model_sha256: str, environment: EngineEnvironment) -> Engine:
        """Return the newest engine that fits.

        Raises:
            TensorRTEngineError: there is none; the sentence says what is wrong with those there are.
        """
        fitting, refusals = [], []
        for found in self._scan():
            try:
                if isinstance(found, TensorRTEngineError):
                    raise found
                found.require_fit(model_sha256, environment)
            except TensorRTEngineError as error:
                refusals.append(error.message)
            else:
                fitting.append(found)
        if fitting:
            return max(fitting, key=lambda engine: engine.manifest.created)
        if refusals:
            msg = f"No engine in {self.root} fits. {' '.join(refusals)}"
        else:
            msg = f"There is no engine in {self.root}: {_BUILD}."
        raise TensorRTEngineError(msg)

    def same(self, draft: EngineManifest) -> Engine | None:
        """Return the whole engine that a manifest describes, or None where there is none yet."""
        path = self.root / draft.folder_name
        try:
            engine = Engine(path, EngineManifest.read(path))
        except TensorRTEngineError:
            return None  # not there, or damaged: it is built anew
        return engine if engine.whole and engine.manifest.describes_same(draft) else None

    @contextmanager
    def locked(self, name: str, progress: Progress = no_progress) -> Iterator[None]:
        """Keep others, on other machines too, from making the engine of a name meanwhile.

        Raises:
            TensorRTEngineError: the folder can't be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / f".{name}.lock").open("wb")
        except OSError as error:
            msg = (
                f"{self.root} can't be written ({error.strerror}); name another folder for engines "
                "with --store or PARLEY_MODEL_ENGINES."
            )
            raise TensorRTEngineError(msg) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another build of this engine", 0, 0)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def put(self, name: str, fill: Callable[[Path], EngineManifest]) -> Engine:
        """Have a folder filled and give it its name; the caller holds the lock.

        Args:
            name: of the folder.
            fill: writes the plan into a folder and returns the manifest.
        """
        self._clear_leftovers(name)
        partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{name}-", dir=self.root))
        # mkdtemp's folders are for their owner alone, and other users' replicas read a shared one.
        partial.chmod(0o755)
        final = self.root / name
        try:
            manifest = fill(partial)
            manifest.write(partial)
            flush(partial)
            if final.exists():
                final.rename(self.root / f"{_REPLACED}{name}")
            partial.rename(final)
            flush(self.root)
        finally:
            # Gone already where all went well; what can't be deleted now, the next build will.
            shutil.rmtree(partial, ignore_errors=True)
        self._clear_leftovers(name)
        return Engine(final, manifest)

    def _clear_leftovers(self, name: str) -> None:
        for path in self.root.iterdir():
            if path.name.startswith((f"{_PARTIAL}{name}-", f"{_REPLACED}{name}")):
                shutil.rmtree(path)

    def _scan(self) -> Iterator[Engine | TensorRTEngineError]:
        if not self.root.is_dir():
            return
        for path in sorted(self.root.iterdir()):
            if path.name.startswith(".") or not path.is_dir():
                continue
            try:
                yield Engine(path, EngineManifest.read(path))
            except TensorRTEngineError as error:
                yield error
