"""Engines of prepared models: built with what the engine's settings say, and found again."""

from __future__ import annotations

from pathlib import Path

from serve_app.models.checkpoint import Progress, no_progress
from serve_app.models.decoder_interface import GRAPH_FILE
from serve_app.models.engine_build.build import build_engine
from serve_app.models.engine_build.engine_manifest import EngineEnvironment
from serve_app.models.engine_build.engine_store import Engine, EngineStore
from serve_app.models.engine_build.graph_identity import prepared_sha256
from serve_app.models.engine_build.machine import Machine
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.engine_build.profiles import decoder_profiles
from serve_app.models.store import PreparedModel

__all__ = ["build_model_engine", "find_model_engine"]


def build_model_engine(
    model: PreparedModel,
    machine: Machine,
    *,
    slots: int,
    prefill_chunk: int,
    options: BuildOptions,
    store: Path | None = None,
    home: Path | None = None,
    rebuild: bool = False,
    progress: Progress = no_progress,
) -> Engine:
    """Return the engine of a prepared model, building it where it isn't there yet.

    Args:
        model: one in the standard form.
        machine: GPU and TensorRT.
        slots: sequences that decode at once.
        prefill_chunk: tokens of a prompt that are computed at once; no more than a slot has.
        options: how to build.
        store: folder that several machines share engines through; None keeps them beside the model.
        home: folder that keeps timing caches; None takes PARLEY_HOME.
        rebuild: build even if the engine is there.
        progress: told of stages.

    Raises:
        TensorRTEngineError: the model is not in the standard form, or can't be built.
    """
    return build_engine(
        model.path / GRAPH_FILE,
        profiles=decoder_profiles(
            model.manifest.interface, slots=slots, prefill_chunk=prefill_chunk
        ),
        options=options,
        store=store,
        home=home,
        name=model.manifest.name,
        sha256=prepared_sha256(model),
        machine=machine,
        rebuild=rebuild,
        progress=progress,
    )


def find_model_engine(
    model: PreparedModel, environment: EngineEnvironment, store: Path | None = None
) -> Engine:
    """Return the newest engine of a prepared model that runs here.

    Args:
        model: the prepared model.
        environment: TensorRT and GPU of this machine.
        store: folder that several machines share engines through; None looks beside the model.

    Raises:
        TensorRTEngineError: there is none, with what is wrong with those there are and what to do.
    """
    sha256 = prepared_sha256(model)
    return EngineStore.of(model.path, sha256, store).find(sha256, environment)
