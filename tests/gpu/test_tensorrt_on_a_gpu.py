"""TensorRT itself, on a GPU: engines are built, and compute what a CPU computes. Skipped without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_driver import request, running
from tiny_checkpoints import write_folder

from serve_app.errors import GpuUnavailable, TensorRTUnavailable
from serve_app.generation.backends.base import Backend, Piece, SamplingBackend
from serve_app.generation.backends.opening import open_backend
from serve_app.messages.generation import GenerateRequest
from serve_app.models.engine_build.machine import Machine, open_machine
from serve_app.models.engine_build.model_engine import build_model_engine
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.precision.base import PrecisionName
from serve_app.models.store import ModelStore, PreparedModel

CONTEXT = 128
SLOTS = 6
NOBODY = (np.zeros(0, np.int64), np.zeros(0, np.int32))
WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1.2, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 20, "min_p": 0.01},
    {"temperature": 0.9, "presence_penalty": 1.1, "frequency_penalty": 0.4},
    {"temperature": 0.6, "logprobs": 3},
]


@pytest.fixture(scope="module")
def machine() -> Machine:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    try:
        machine = open_machine()
    except (GpuUnavailable, TensorRTUnavailable) as error:
        pytest.skip(error.message)
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} can't use the GPU")
    return machine


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


def prepared(home: Path, form: str, precision: PrecisionName) -> PreparedModel:
    if not (home / "tiny").exists():
        write_folder(home / "tiny")
    return ModelStore(home).prepare(
        str(home / "tiny"),
        precision=precision,
        form=form,  # type: ignore[arg-type]
        cache_length=CONTEXT,
    )


def on_gpu(machine: Machine, home: Path, precision: PrecisionName) -> Backend:
    model = prepared(home, "standard", precision)
    build_model_engine(
        model, machine, slots=SLOTS, prefill_chunk=12, options=BuildOptions(), home=home
    )
    return open_backend(model, threads=1)


def on_cpu(home: Path) -> Backend:
    return open_backend(prepared(home, "cpu", "fp32"), threads=1)


def logits(backend: Backend, prompts: list[np.ndarray]) -> np.ndarray:
    """Return the logits behind each of some prompts, [n, vocab]."""
    backend.allocate(slots=SLOTS, max_len=CONTEXT, blocks=0, block_tokens=16)
    for slot, prompt in enumerate(prompts):
        backend.step([Piece(slot, 0, prompt[:-1])], *NOBODY)
    newest = np.array([prompt[-1] for prompt in prompts], np.int64)
    lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
    return backend.step([], newest, lengths).copy()


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-3), ("fp16", 5e-2), ("bf16", 5e-1)])
def test_logits_are_those_of_a_cpu(
    machine: Machine, home: Path, precision: PrecisionName, close: float
) -> None:
    rng = np.random.default_rng(0)
    reference = on_cpu(home)
    prompts = [rng.integers(5, reference.vocab_size, length) for length in (3, 17, 40, 90)]
    expected = logits(reference, prompts)
    found = logits(on_gpu(machine, home, precision), prompts)
    assert np.abs(found - expected).max() < close


def replies(backend: Backend, asked: list[GenerateRequest], **limits: Any) -> list[list[int]]:
    limits = {"max_len": CONTEXT, "max_cached_tokens": 1024, "prefix_block": 16} | limits
    with running(backend, **limits) as (engine, listener):
        for each in asked:
            engine.submit(each)
        return [listener.reply(each) for each in asked]


def asked() -> list[GenerateRequest]:
    return [
        request(
            tuple(range(5, 12 + 3 * number)), max_tokens=20 + number, **(way | {"seed": number})
        )
        for number, way in enumerate(WAYS)
    ]


def test_replies_are_those_of_a_cpu_however_tokens_are_chosen(machine: Machine, home: Path) -> None:
    backend = on_gpu(machine, home, "fp32")
    assert isinstance(backend, SamplingBackend)
    assert replies(backend, asked(), slots=SLOTS) == replies(on_cpu(home), asked())


def test_a_reply_is_the_same_alone_and_in_a_batch(machine: Machine, home: Path) -> None:
    together = replies(on_gpu(machine, home, "fp32"), asked(), slots=SLOTS)
    alone = [replies(on_gpu(machine, home, "fp32"), [each], slots=1)[0] for each in asked()]
    assert together == alone
