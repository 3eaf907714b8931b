"""Build the decoder as an ONNX graph from a checkpoint's weights, for a form and a precision."""

from __future__ import annotations

from pathlib import Path

from serve_app.models.calibration import measure_inputs
from serve_app.models.checkpoint import Checkpoint, Progress, no_progress
from serve_app.models.decoder_interface import Form
from serve_app.models.decoder_layers import write_decoder
from serve_app.models.precision.base import PrecisionName
from serve_app.models.precision.named import calibrated, precision_named, require_form
from serve_app.models.smoothing import SmoothedCheckpoint

__all__ = ["build_decoder"]


def build_decoder(
    checkpoint: Checkpoint,
    *,
    form: Form,
    precision: PrecisionName,
    directory: Path,
    cache_length: int | None = None,
    progress: Progress = no_progress,
) -> None:
    """Write `decoder.onnx` and `decoder.onnx.data` into a folder that exists.

    The graph's inputs and outputs are described in `decoder_interface`. A precision that rounds the
    inputs of products has the model run once before, to see how large they get; integers, whose steps
    are all the same, have the largest of them moved into the weights.

    Args:
        checkpoint: where the weights come from.
        form: which operators the graph is made of.
        precision: how weights are stored and multiplied.
        directory: where the two files go.
        cache_length: tokens of a slot, which the standard form needs and the others don't fix.
        progress: told of every tensor read, out of all tensors.

    Raises:
        ModelError: form or precision is unknown, they don't go together, they can't take this
            architecture, the cache is longer than the context, or a tensor can't be read.
        OSError: the disk is full or the folder can't be written.
    """
    require_form(precision, form)
    inputs = None
    if calibrated(precision):
        inputs = measure_inputs(checkpoint, directory, progress)
        if precision == "int8-w8a8":
            checkpoint = SmoothedCheckpoint(checkpoint, inputs)
            inputs = checkpoint.inputs
    write_decoder(
        checkpoint,
        precision_named(precision, form, inputs),
        form=form,
        directory=directory,
        cache_length=cache_length,
        progress=progress,
    )
