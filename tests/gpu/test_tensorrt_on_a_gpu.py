"""The runtime on a GPU: what it computes is what a CPU computes. Skipped without one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from engine_driver import request, running
from models_on_a_gpu import CONTEXT, SLOTS, ModelsOnGpu, asked, replies
from numpy.typing import NDArray

from serve_app.generation.backends.base import Backend, Choice, Piece, SamplingBackend
from serve_app.generation.sampling import Sampler
from serve_app.messages.generation import SamplingParams
from serve_app.models.precision.base import PrecisionName

NOBODY = (np.zeros(0, np.int64), np.zeros(0, np.int32))


def prompts_of(*lengths: int, vocab_size: int) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, vocab_size, length) for length in lengths]


def allocate(backend: Backend) -> None:
    backend.allocate(slots=SLOTS, max_len=CONTEXT, blocks=0, block_tokens=16)


def fill(backend: Backend, prompts: list[NDArray[np.int64]]) -> None:
    """Compute all but the last token of some prompts, each in the slot of its place."""
    for slot, prompt in enumerate(prompts):
        backend.step([Piece(slot, 0, prompt[:-1])], *NOBODY)


def logits(backend: Backend, prompts: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Return the logits behind each of some prompts, which are in their slots, [n, vocab]."""
    newest = np.array([prompt[-1] for prompt in prompts], np.int64)
    lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
    return backend.step([], newest, lengths).copy()


@pytest.mark.parametrize(
    ("precision", "close"),
    [("fp32", 1e-3), ("fp16", 5e-2), ("bf16", 5e-1), ("int8-w8a8", 1.0), ("fp8-w8a8", 2.0)],
)
def test_logits_are_those_of_a_cpu(
    gpu: ModelsOnGpu, precision: PrecisionName, close: float
) -> None:
    if gpu.simulated and precision == "bf16":
        pytest.skip("ONNX Runtime has no bfloat16 on a CPU")
    reference, backend = gpu.on_cpu(), gpu.backend(precision)
    prompts = prompts_of(3, 17, 40, 90, vocab_size=reference.vocab_size)
    found = []
    for each in (reference, backend):
        allocate(each)
        fill(each, prompts)
        found.append(logits(each, prompts))
    assert np.abs(found[0] - found[1]).max() < close


def test_every_captured_batch_size_computes_what_a_cpu_computes(gpu: ModelsOnGpu) -> None:
    reference, backend = gpu.on_cpu(), gpu.backend()
    prompts = prompts_of(3, 9, 17, 40, 64, 90, vocab_size=reference.vocab_size)
    for each in (reference, backend):
        allocate(each)
        fill(each, prompts)
    for batch in (*range(1, SLOTS + 1), 2, 1):  # a graph is replayed after others, too
        expected = logits(reference, prompts[:batch])
        assert np.abs(logits(backend, prompts[:batch]) - expected).max() < 1e-3


def greedy(
    backend: SamplingBackend, prompts: list[NDArray[np.int64]], *, depth: int
) -> list[list[int]]:
    """Return 20 tokens behind each prompt, with so many steps in flight."""
    fill(backend, prompts)
    params = SamplingParams(max_tokens=20, seed=0, temperature=0.0, ignore_eos=True)
    samplers = [Sampler(params, (), (), (), backend.vocab_size) for _ in prompts]
    newest = [int(prompt[-1]) for prompt in prompts]
    said: list[list[int]] = []
    begun = 0
    while len(said) < params.max_tokens:
        while begun - len(said) < depth:
            ahead = begun - len(said)
            rows = zip(samplers, newest, prompts, strict=True)
            backend.enqueue(
                [],
                [
                    Choice(sampler, ahead, token, len(prompt) - 1 + begun)
                    for sampler, token, prompt in rows
                ],
            )
            begun += 1
        newest = backend.collect().tokens.tolist()
        said.append(newest)
        for sampler, token in zip(samplers, newest, strict=True):
            sampler.advance(token)
    for _ in range(begun - len(said)):
        backend.collect()
    return said


def test_a_step_that_begins_before_the_last_ones_tokens_are_read_computes_the_same(
    gpu: ModelsOnGpu,
) -> None:
    backend = gpu.backend()
    allocate(backend)
    prompts = prompts_of(3, 17, 40, vocab_size=backend.vocab_size)
    assert backend.depth == 2
    assert greedy(backend, prompts, depth=2) == greedy(backend, prompts, depth=1)


def test_it_takes_no_more_memory_than_was_reckoned(gpu: ModelsOnGpu) -> None:
    backend = gpu.backend()
    before = backend.device.free_bytes()
    reckoned = backend._plan(0, 16)
    allocate(backend)
    assert before - backend.device.free_bytes() <= reckoned.fixed + SLOTS * reckoned.slot


def test_replies_are_those_of_a_cpu_however_tokens_are_chosen(gpu: ModelsOnGpu) -> None:
    assert replies(gpu.backend(), asked(), slots=SLOTS) == replies(gpu.on_cpu(), asked())


def test_a_reply_is_the_same_alone_and_in_a_batch(gpu: ModelsOnGpu) -> None:
    together = replies(gpu.backend(), asked(), slots=SLOTS)
    alone = [replies(gpu.backend(), [each], slots=1)[0] for each in asked()]
    assert together == alone


def test_a_conversation_goes_on_from_its_cached_prefix(gpu: ModelsOnGpu) -> None:
    limits: dict[str, Any] = {"prefix_cache_bytes": 1 << 20, "prefix_block": 16}
    whole = request(tuple(range(5, 85)), max_tokens=20)
    (expected,) = replies(gpu.backend(), [whole], prefix_cache_bytes=0)
    with running(gpu.backend(), max_len=CONTEXT, **limits) as (engine, listener):
        for again in itertools.repeat(tuple(range(5, 85)), 2):
            each = request(again, max_tokens=20)
            engine.submit(each)
            assert listener.reply(each) == expected
        assert engine.stats().prefix_hits_total >= 64
