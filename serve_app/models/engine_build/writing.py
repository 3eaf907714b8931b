"""How an engine gets into its store: once, whole, and with a manifest."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from serve_app.errors import TensorRTEngineError
from serve_app.models.checkpoint import Progress
from serve_app.models.engine_build.compiler import CompilerRefusal
from serve_app.models.engine_build.engine_manifest import PLAN_FILE, EngineManifest
from serve_app.models.engine_build.engine_store import Engine, EngineStore
from serve_app.models.manifest import FileEntry, sha256_of

__all__ = ["write_engine"]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_engine(
    store: EngineStore,
    draft: EngineManifest,
    compile_plan: Callable[[Path], None],
    *,
    reuse: bool,
    progress: Progress,
) -> Engine:
    """Return the engine that a manifest describes, making it where it isn't there yet.

    Args:
        store: where it goes.
        draft: what it is; size and hash of the plan and the time are put in when they are known.
        compile_plan: writes the serialized engine to a path.
        reuse: take the one that is there.
        progress: told of stages.

    Raises:
        TensorRTEngineError: it can't be made, or the disk is full. Nothing half-written is left.
    """
    name = draft.folder_name
    if reuse and (engine := store.same(draft)):
        return engine

    def fill(folder: Path) -> EngineManifest:
        plan = folder / PLAN_FILE
        compile_plan(plan)
        size, done = plan.stat().st_size, 0

        def count(read: int) -> None:
            nonlocal done
            done += read
            progress("hashing the engine", done, size)

        entry = FileEntry(bytes=size, sha256=sha256_of(plan, on_bytes=count))
        return draft.model_copy(update={"plan": entry, "created": int(time.time())})

    with store.locked(name, progress):
        # Somebody else may have made it while this process waited.
        if reuse and (engine := store.same(draft)):
            return engine
        try:
            return store.put(name, fill)
        except CompilerRefusal as error:
            reasons = "; ".join(error.reasons) or "it gives no reason"
            msg = (
                f"TensorRT {draft.tensorrt} makes no engine of {draft.model}: {reasons}. `parley model "
                "lint` finds what its parser refuses; if memory is short, take fewer --slots or a "
                "smaller --prefill-chunk, or end what else runs on the GPU."
            )
            raise TensorRTEngineError(msg) from error
        except OSError as error:
            if error.errno in _DISK_FULL:
                free = shutil.disk_usage(store.root).free
                msg = (
                    f"The engine of {draft.model} doesn't fit the disk of {store.root}, which can take "
                    f"{free / 1e6:.0f} MB: free some space, or name another folder with --store."
                )
                raise TensorRTEngineError(msg) from error
            msg = f"Writing the engine of {draft.model} to {store.root} failed: {error}."
            raise TensorRTEngineError(msg) from error
