"""How large the inputs of a decoder's products get: what quantizing them beforehand has to know."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from serve_app.errors import ModelError
from serve_app.models.checkpoint import Checkpoint, FloatArray, Progress, no_progress
from serve_app.models.decoder_interface import (
    GRAPH_FILE,
    INPUT_IDS,
    LOGIT_ROWS,
    LOGITS,
    WRITE_INDICES,
    DecoderInterface,
)
from serve_app.models.decoder_layers import write_decoder
from serve_app.models.precision.observed import ObservedInputs

__all__ = ["measure_inputs"]

_TEXT = Path(__file__).parent / "calibration.txt"
_WINDOW = 256


def measure_inputs(
    checkpoint: Checkpoint, folder: Path, progress: Progress = no_progress
) -> dict[str, FloatArray]:
    """Run a model over a text that ships, and return how large each input of its linears got.

    It runs in fp32, which takes four bytes a weight of disk and memory meanwhile.

    Args:
        checkpoint: the model.
        folder: where the graph lies meanwhile; nothing of it is left.
        progress: told of weights written and windows done.

    Returns:
        By the linear's name the largest magnitude of each input, [in].

    Raises:
        ModelError: the checkpoint can't be read, or gives numbers that aren't finite.
        OSError: the disk is full.
    """
    windows = list(_windows(checkpoint))
    length = max(map(len, windows))
    precision = ObservedInputs()
    with tempfile.TemporaryDirectory(prefix="calibration-", dir=folder) as place:
        write_decoder(
            checkpoint,
            precision,
            form="standard",
            directory=Path(place),
            cache_length=length,
            progress=progress,
        )
        return _run(Path(place), checkpoint, precision.observed, windows, length, progress)


def _windows(checkpoint: Checkpoint) -> Iterator[list[int]]:
    """Cut the text into windows, each with what the tokenizer puts in front of a text."""
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer().tokenizer_json)
    opening: list[int] = tokenizer.encode("").ids
    tokens: list[int] = tokenizer.encode(
        _TEXT.read_text(encoding="utf-8"), add_special_tokens=False
    ).ids
    width = min(_WINDOW, checkpoint.architecture.context_length)
    step = max(1, width - len(opening))
    for start in range(0, len(tokens), step):
        yield (opening + tokens[start : start + step])[:width]


def _run(
    folder: Path,
    checkpoint: Checkpoint,
    observed: Mapping[str, str],
    windows: list[list[int]],
    length: int,
    progress: Progress,
) -> dict[str, FloatArray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = ort.InferenceSession(
        str(folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"]
    )
    interface = DecoderInterface.of(checkpoint.architecture, "standard", cache_length=length)
    shape = interface.cache_shape(1, length)
    # Every window begins at nothing: what another one has left there is seen by nobody.
    caches = [np.zeros(shape, interface.cache_dtype) for _ in interface.cache_names]
    largest: dict[str, FloatArray] = {}
    for done, window in enumerate(windows):
        progress("calibrating", done, len(windows))
        binding = session.io_binding()
        binding.bind_cpu_input(INPUT_IDS, np.array([window], np.int64))
        binding.bind_cpu_input(WRITE_INDICES, np.zeros(1, np.int64))
        binding.bind_cpu_input(LOGIT_ROWS, np.arange(len(window), dtype=np.int64))
        for (past, present), cache in zip(interface.cache_names, caches, strict=True):
            place = ("cpu", 0, cache.dtype.type, cache.shape, cache.ctypes.data)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)
        binding.bind_output(LOGITS, "cpu")
        for output in observed.values():
            binding.bind_output(output, "cpu")
        session.run_with_iobinding(binding)
        # They come in the order in which they were bound.
        found = binding.get_outputs()[-len(observed) :]
        for name, seen in zip(observed, found, strict=True):
            largest[name] = np.maximum(largest.get(name, 0), seen.numpy())
    progress("calibrating", len(windows), len(windows))
    for name, seen in largest.items():
        if not np.isfinite(seen).all():
            msg = f"{checkpoint.source}: the inputs of {name} are no finite numbers; its weights are broken."
            raise ModelError(msg)
    return largest
