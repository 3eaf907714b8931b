"""What the engine may rely on, of every backend: on the CPU, and of TensorRT's on a simulated device."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends_under_contract import (
    ARCHITECTURE,
    CONTEXT,
    Make,
    build,
    open_cpu,
    open_native,
    open_tensorrt,
)
from engine_driver import request, running

from serve_app.generation.backends.base import Backend, Piece
from serve_app.messages.generation import FinishReason, GenerateRequest

NOBODY = (np.zeros(0, np.int64), np.zeros(0, np.int32))
BLOCK = 16
# Between two ways to the same logits: other batches, other roundings.
CLOSE = {"cpu": 1e-4, "native": 1e-4, "tensorrt": 1e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("decoders")
    return {
        "cpu": build(root / "cpu", "cpu"),
        "native": build(root / "native", "native", "int8"),
        "tensorrt": build(root / "standard", "standard"),
    }


@pytest.fixture(params=["cpu", "native", "tensorrt"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def maker(kind: str, folders: dict[str, Path]) -> Make:
    opened = {"cpu": open_cpu, "native": open_native, "tensorrt": open_tensorrt}[kind]
    return lambda: opened(folders[kind])


@pytest.fixture
def make(kind: str, folders: dict[str, Path]) -> Make:
    return maker(kind, folders)


@pytest.fixture
def backend(make: Make) -> Backend:
    backend = make()
    backend.allocate(slots=6, max_len=CONTEXT, blocks=4, block_tokens=BLOCK)
    return backend


def prompt_of(length: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, length])
    return rng.integers(0, ARCHITECTURE.vocab_size, length).astype(np.int64)


def fill(backend: Backend, slot: int, tokens: np.ndarray, cuts: tuple[int, ...] = ()) -> None:
    """Compute all but the last token of a prompt, piece by piece."""
    for first, last in itertools.pairwise([0, *cuts, len(tokens) - 1]):
        backend.step([Piece(slot, first, tokens[first:last])], *NOBODY)


def decode(backend: Backend, prompts: list[np.ndarray]) -> np.ndarray:
    """Return the logits behind the last tokens of prompts in slots 0 to n - 1."""
    newest = np.array([prompt[-1] for prompt in prompts], np.int64)
    lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
    return backend.step([], newest, lengths).copy()


def logits_of(backend: Backend, prompt: np.ndarray) -> np.ndarray:
    fill(backend, 0, prompt)
    return decode(backend, [prompt])[0]


def near(kind: str, one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() < CLOSE[kind])


def test_a_prompt_in_chunks_gives_the_logits_of_a_whole_one(kind: str, backend: Backend) -> None:
    prompt = prompt_of(60)
    whole = logits_of(backend, prompt)
    for cuts in [(7,), (20, 40), (16, 18, 50)]:
        fill(backend, 0, prompt, cuts)
        assert near(kind, decode(backend, [prompt])[0], whole)


def test_a_ragged_batch_gives_each_row_what_it_gets_alone(kind: str, backend: Backend) -> None:
    prompts = [prompt_of(length) for length in (5, 44, 3, 90, 17)]
    alone = [logits_of(backend, prompt) for prompt in prompts]
    for slot, prompt in enumerate(prompts):
        fill(backend, slot, prompt)
    assert near(kind, decode(backend, prompts), np.array(alone))


def test_a_prompts_last_token_may_be_computed_in_the_step_of_its_last_piece(
    kind: str, backend: Backend
) -> None:
    prompt = prompt_of(30)
    whole = logits_of(backend, prompt)
    newest, lengths = np.array([prompt[-1]]), np.array([len(prompt) - 1], np.int32)
    together = backend.step([Piece(0, 0, prompt[:-1])], newest, lengths)
    assert near(kind, together[0], whole)


def test_decoding_leaves_a_prompt_behind_it_alone(kind: str, backend: Backend) -> None:
    # Batches of 3 and 5 are filled up to the next size, over the slots behind them.
    half = prompt_of(CONTEXT - 1)
    whole = logits_of(backend, half)
    for batch in (1, 3, 5):
        prompts = [prompt_of(9, seed) for seed in range(batch)]
        for slot, prompt in enumerate(prompts):
            fill(backend, slot, prompt)
        fill(backend, batch, half)
        decode(backend, prompts)
        backend.move(batch, 0, len(half) - 1)
        assert near(kind, decode(backend, [half])[0], whole)


def test_a_moved_slot_goes_on_as_it_would_have(kind: str, backend: Backend) -> None:
    prompt = prompt_of(40)
    whole = logits_of(backend, prompt)
    fill(backend, 4, prompt)
    backend.move(4, 0, len(prompt) - 1)
    backend.vacate(4, len(prompt) - 1)
    assert near(kind, decode(backend, [prompt])[0], whole)


def test_a_prefix_out_of_blocks_is_as_good_as_a_computed_one(kind: str, backend: Backend) -> None:
    prompt = prompt_of(3 * BLOCK + 5)
    whole = logits_of(backend, prompt)
    for place, block in enumerate((2, 0, 3)):
        backend.save(0, place * BLOCK, block)
    fill(backend, 0, prompt_of(100, seed=1))
    backend.load([2, 0, 3], 1)
    rest = Piece(1, 3 * BLOCK, prompt[3 * BLOCK : -1])
    backend.step([rest], *NOBODY)
    backend.move(1, 0, len(prompt) - 1)
    assert near(kind, decode(backend, [prompt])[0], whole)


def test_drafts_are_computed_where_they_are_taken(kind: str, backend: Backend) -> None:
    if not backend.draft_rows:
        assert kind in ("cpu", "tensorrt")
        return
    prompt = prompt_of(20)
    behind = [logits_of(backend, prompt[:end]) for end in (18, 19, 20)]
    fill(backend, 0, prompt[:18])
    newest, lengths = prompt[17:18], np.array([17], np.int32)
    logits = backend.step([], newest, lengths, [Piece(0, 18, prompt[18:])])
    assert near(kind, logits, np.array(behind))


def replies(make: Make, asked: list[GenerateRequest], **limits: Any) -> list[list[int]]:
    limits = {"max_cached_tokens": 1024, "max_len": CONTEXT, "prefix_block": BLOCK} | limits
    with running(make(), **limits) as (engine, listener):
        for each in asked:
            engine.submit(each)
        return [listener.reply(each) for each in asked]


def ask(number: int, **changes: Any) -> GenerateRequest:
    prompt = tuple(prompt_of(5 + 7 * (number % 5), seed=number).tolist())
    return request(prompt, **({"max_tokens": 12 + number, "seed": number} | changes))


def test_greedy_replies_are_the_same_on_all_that_compute_in_full_precision(
    folders: dict[str, Path],
) -> None:
    asked = [ask(number) for number in range(9)]
    on_cpu = replies(maker("cpu", folders), asked)
    asked = [ask(number) for number in range(9)]
    assert replies(maker("tensorrt", folders), asked, slots=5) == on_cpu


HOW: list[dict[str, Any]] = [
    {"temperature": 0.8},
    {"temperature": 1.2, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.9, "presence_penalty": 1.1, "frequency_penalty": 0.4},
    {"temperature": 0.7, "logit_bias": ((7, 4.0), (9, -50.0), (7, 1.0))},
    {"temperature": 1.0, "min_tokens": 9, "stop_token_ids": tuple(range(40))},
    {"temperature": 0.6, "logprobs": 3},
]


def test_a_seed_gives_the_same_reply_alone_and_in_a_batch(make: Make) -> None:
    def asked() -> list[GenerateRequest]:
        return [ask(number, **how) for number, how in enumerate(HOW)]

    together = replies(make, asked(), slots=6)
    alone = [replies(make, [each], slots=1, prefix_cache_bytes=0)[0] for each in asked()]
    assert together == alone


def test_every_way_to_choose_gives_the_same_tokens_on_the_device_as_on_the_host(
    folders: dict[str, Path],
) -> None:
    def asked() -> list[GenerateRequest]:
        return [ask(number, **how) for number, how in enumerate(HOW)]

    on_host = replies(maker("cpu", folders), asked())
    assert replies(maker("tensorrt", folders), asked(), slots=6) == on_host


def test_a_reply_ends_at_its_stop_token_however_many_steps_are_begun(make: Make) -> None:
    whole = replies(make, [ask(1, max_tokens=20)])[0]
    place = next(n for n in range(3, 20) if whole[n] not in whole[:n])
    stopping = ask(1, max_tokens=20, stop_token_ids=(whole[place],))
    others = [ask(number, max_tokens=30) for number in (2, 3, 4, 5, 6, 7)]
    alone = replies(make, [ask(number, max_tokens=30) for number in (2, 3, 4, 5, 6, 7)])
    # Its slot goes to somebody else while a token of its own is on the way.
    together = replies(make, [stopping, *others], slots=2)
    assert together == [whole[:place], *alone]


def test_what_a_cancelled_stream_leaves_disturbs_nobody(make: Make) -> None:
    kept = [ask(number, max_tokens=40) for number in (1, 2, 3)]
    alone = replies(make, [ask(number, max_tokens=40) for number in (1, 2, 3)])
    limits = {"max_cached_tokens": 1024, "prefix_block": BLOCK}
    with running(make(), slots=2, **limits) as (engine, listener):
        gone = ask(5, max_tokens=100)
        for each in (gone, *kept):
            engine.submit(each)
        listener.wait_for(lambda: len(listener.tokens[gone.stream]) >= 3)
        engine.cancel(gone.request_id)
        assert listener.end_of(gone).reason is FinishReason.CANCELLED
        assert [listener.reply(each) for each in kept] == alone


def test_a_conversation_goes_on_from_its_cached_prefix(make: Make) -> None:
    limits = {"prefix_cache_bytes": 1 << 20, "prefix_block": BLOCK}
    first = ask(4, max_tokens=30)
    with running(make(), max_cached_tokens=1024, **limits) as (engine, listener):
        engine.submit(first)
        said = listener.reply(first)
        second = request((*first.prompt, *said, 5, 6, 7), max_tokens=16)
        engine.submit(second)
        reply = listener.reply(second)
        assert listener.finished[second.stream].cached_tokens >= BLOCK
    fresh = request(second.prompt, max_tokens=16)
    assert reply == replies(make, [fresh], prefix_cache_bytes=0)[0]
