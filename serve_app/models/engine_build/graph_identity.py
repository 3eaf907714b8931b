"""What tells one decoder graph from another: its content, and its structure without the weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, external_data_helper

from serve_app.errors import TensorRTEngineError
from serve_app.models.checkpoint import Progress, no_progress
from serve_app.models.decoder_interface import DATA_FILE, GRAPH_FILE
from serve_app.models.manifest import FileEntry, sha256_of
from serve_app.models.store import PreparedModel

__all__ = ["content_sha256", "prepared_sha256", "structure_sha256"]

# Shapes, axes and positions: an engine is built around them, and a refit leaves them alone.
_STRUCTURAL = frozenset({TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL})


def content_sha256(graph: Path, progress: Progress = no_progress) -> str:
    """Hash a graph with all its data files.

    Args:
        graph: an .onnx file.
        progress: told of the bytes that are read.

    Raises:
        TensorRTEngineError: the graph or its data can't be read.
    """
    paths = [graph, *_data_files(graph)]
    try:
        total = sum(path.stat().st_size for path in paths)
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            progress("hashing the graph", done, total)

        entries = {path.name: sha256_of(path, on_bytes=count) for path in paths}
    except OSError as error:
        msg = (
            f"{error.filename} can't be read ({error.strerror}); keep data files beside the graph."
        )
        raise TensorRTEngineError(msg) from error
    return _joined(graph.name, entries)


def prepared_sha256(model: PreparedModel) -> str:
    """Return the `content_sha256` of a prepared model's graph, from what its manifest says of the files."""
    files: dict[str, FileEntry] = model.manifest.files
    entries = {name: files[name].sha256 for name in (GRAPH_FILE, DATA_FILE) if name in files}
    return _joined(GRAPH_FILE, entries)


def structure_sha256(graph: Path) -> str:
    """Hash a graph without its weights: two of the same structure can share an engine by refitting.

    Raises:
        TensorRTEngineError: the graph can't be read.
    """
    model = _read(graph)
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(repr((tensor.name, tensor.data_type, tuple(tensor.dims))).encode())
        if tensor.data_type in _STRUCTURAL and not external_data_helper.uses_external_data(tensor):
            digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
    del model.graph.initializer[:]
    for entry in (model.graph, *model.opset_import, *model.functions):
        digest.update(entry.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _joined(graph_name: str, entries: dict[str, str]) -> str:
    """Hash names and hashes of files; the graph's own name doesn't count."""
    lines = sorted(
        f"{'' if name == graph_name else name}\0{sha256}\n" for name, sha256 in entries.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _data_files(graph: Path) -> list[Path]:
    names = {
        entry.value
        for tensor in _read(graph).graph.initializer
        if external_data_helper.uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [graph.parent / name for name in sorted(names)]


def _read(graph: Path) -> ModelProto:
    try:
        return onnx.load(graph, load_external_data=False)
    except Exception as error:  # the readers' exceptions have no common base of their own
        msg = f"{graph} is no ONNX graph that can be read ({error}); give a whole .onnx file."
        raise TensorRTEngineError(msg) from error
