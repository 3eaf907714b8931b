"""The bundled model on the CPU: replies don't depend on slots, chunks, neighbours or caches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from engine_driver import Listener, config, request
from numpy.typing import NDArray
from random_checkpoint import RandomCheckpoint, tiny_architecture
from tokenizers import Tokenizer

from serve_app.errors import ConfigError, ModelError
from serve_app.generation.backends.base import Piece
from serve_app.generation.backends.native import NativeBackend
from serve_app.generation.backends.onnxruntime import OnnxRuntimeBackend
from serve_app.generation.backends.opening import open_backend
from serve_app.generation.engine import Engine
from serve_app.models.decoder_graph import build_decoder
from serve_app.models.decoder_interface import DecoderInterface
from serve_app.models.store import PreparedModel

TEXT = Path(__file__).parents[2] / "data" / "alice_chapter_1.txt"
NOBODY = (np.zeros(0, np.int64), np.zeros(0, np.int32))

CpuBackend = NativeBackend | OnnxRuntimeBackend
Tokens = NDArray[np.int64]


@pytest.fixture(scope="module")
def alice(bundled_int8: PreparedModel) -> Tokens:
    tokenizer = Tokenizer.from_file(str(bundled_int8.path / "tokenizer.json"))
    return np.array(tokenizer.encode(TEXT.read_text()).ids)


@pytest.fixture(params=["bundled_int8", "bundled_int8_cpu"])
def model(request: pytest.FixtureRequest) -> PreparedModel:
    found: PreparedModel = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def backend(model: PreparedModel) -> CpuBackend:
    backend = open_backend(model, threads=2)
    backend.allocate(slots=4, max_len=128, blocks=4, block_tokens=16)
    return backend


def fill(
    backend: CpuBackend, slot: int, tokens: Tokens, cuts: Sequence[int] = (), start: int = 0
) -> None:
    """Compute all but the last token of a prompt, step by step."""
    edges = [start, *cuts, len(tokens) - 1]
    for first, last in itertools.pairwise(edges):
        backend.step([Piece(slot, first, tokens[first:last])], *NOBODY)


def logits_behind(backend: CpuBackend, *prompts: Tokens) -> NDArray[np.float32]:
    """Compute the last tokens of prompts whose others the slots from 0 on hold."""
    tokens = np.array([prompt[-1] for prompt in prompts])
    lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
    return backend.step([], tokens, lengths).copy()


def test_the_backend_is_that_of_the_models_form(backend: CpuBackend, model: PreparedModel) -> None:
    kinds = {"native": NativeBackend, "cpu": OnnxRuntimeBackend}
    assert type(backend) is kinds[model.manifest.form]


def test_logits_are_the_same_to_the_bit_however_a_prompt_is_cut_and_wherever_it_lies(
    backend: CpuBackend, alice: Tokens
) -> None:
    prompt = alice[:60]
    fill(backend, 0, prompt)
    whole = logits_behind(backend, prompt)
    assert whole.shape == (1, backend.vocab_size)
    for slot, cuts in enumerate([[30], [2, 7, 57], [16, 32, 48], []]):
        fill(backend, slot, prompt, cuts)
    np.testing.assert_array_equal(
        logits_behind(backend, *[prompt] * 4), np.repeat(whole, 4, axis=0)
    )


def test_logits_are_the_same_to_the_bit_when_prompts_share_a_step(
    backend: CpuBackend, alice: Tokens
) -> None:
    prompts = [alice[:50], alice[100:140], alice[200:231]]
    alone = []
    for prompt in prompts:
        fill(backend, 0, prompt)
        alone.append(logits_behind(backend, prompt)[0])
    running, ending, starting = prompts
    fill(backend, 0, running)
    pieces = [
        Piece(1, 0, ending[:20]),
        Piece(1, 20, ending[20:39]),
        Piece(2, 0, starting[:17]),
    ]
    tokens = np.array([running[-1], ending[-1]])
    logits = backend.step(pieces, tokens, np.array([49, 39], np.int32))
    np.testing.assert_array_equal(logits, alone[:2])
    fill(backend, 2, starting, start=17)
    np.testing.assert_array_equal(logits_behind(backend, *prompts), alone)


def test_a_guess_computes_to_the_bit_what_its_own_step_would(
    bundled_int8: PreparedModel, alice: Tokens
) -> None:
    backend = open_backend(bundled_int8, threads=2)
    backend.allocate(slots=4, max_len=128, blocks=0, block_tokens=16)
    prompts = [alice[:50], alice[100:140], alice[200:231]]
    behind = [alice[50:53], alice[:0], alice[231:240]]
    steps = []
    for prompt, more in zip(prompts, behind, strict=True):
        fill(backend, 3, prompt)
        known = list(prompt)
        for token in (None, *more):
            known += [] if token is None else [token]
            length = np.array([0, 0, 0, len(known) - 1], np.int32)
            steps.append(backend.step([], np.array([0, 0, 0, known[-1]]), length)[3].copy())
    for slot, prompt in enumerate(prompts):
        fill(backend, slot, prompt)
    wrong = alice[60:66]
    tokens = np.array([prompt[-1] for prompt in prompts])
    lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
    # What a wrong guess leaves behind is written over.
    backend.step([], tokens, lengths, [Piece(slot, lengths[slot] + 1, wrong) for slot in (0, 2)])
    drafts = [Piece(slot, lengths[slot] + 1, behind[slot]) for slot in (0, 2)]
    logits = backend.step([], tokens, lengths, drafts)
    first = [steps[0], steps[4], steps[5]]
    np.testing.assert_array_equal(logits, [*first, *steps[1:4], *steps[6:]])


def test_no_logits_are_computed_that_nobody_wants(backend: CpuBackend, alice: Tokens) -> None:
    logits = backend.step([Piece(2, 0, alice[:20])], *NOBODY)
    assert logits.shape == (0, backend.vocab_size)


def test_logits_of_a_decode_step_are_the_same_to_the_bit_alone_and_in_a_batch(
    backend: CpuBackend, alice: Tokens
) -> None:
    prompts = [alice[100 * slot :][: length + 1] for slot, length in enumerate([50, 20, 35, 1])]
    for slot, prompt in enumerate(prompts):
        fill(backend, slot, prompt)
    together = logits_behind(backend, *prompts)
    for slot, prompt in enumerate(prompts):
        fill(backend, 0, prompt)
        np.testing.assert_array_equal(logits_behind(backend, prompt)[0], together[slot])


def test_a_step_leaves_other_slots_alone(backend: CpuBackend, alice: Tokens) -> None:
    fill(backend, 2, alice[:30])
    before = backend._kv.slots.copy()
    assert before[:, 2].any()
    fill(backend, 0, alice[30:60])
    fill(backend, 1, alice[60:90])
    logits_behind(backend, alice[30:60], alice[60:90])
    np.testing.assert_array_equal(backend._kv.slots[:, 2:], before[:, 2:])


def test_a_moved_slot_and_a_loaded_prefix_go_on_as_the_original(
    backend: CpuBackend, alice: Tokens
) -> None:
    prompt = alice[:41]
    fill(backend, 0, prompt)
    expected = logits_behind(backend, prompt)
    backend.save(0, 0, block=2)
    backend.save(0, 16, block=0)
    backend.load([2, 0], 3)
    fill(backend, 3, prompt, start=32)
    fill(backend, 0, alice[200:250])
    backend.move(3, 0, 40)
    np.testing.assert_array_equal(logits_behind(backend, prompt), expected)


def test_token_bytes_is_what_a_token_takes(backend: CpuBackend, model: PreparedModel) -> None:
    element = {"native": 2, "cpu": 4}[model.manifest.form]
    assert backend.token_bytes == 30 * 2 * 3 * 64 * element
    assert backend._kv.slots.nbytes == 4 * 128 * backend.token_bytes
    assert backend.context_length == model.manifest.context_length


@pytest.mark.parametrize("kind", [NativeBackend, OnnxRuntimeBackend])
@pytest.mark.parametrize("content", [None, b"not a graph"])
def test_a_graph_that_cannot_be_loaded_is_named(
    tmp_path: Path, bundled_int8: PreparedModel, kind: type[CpuBackend], content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "decoder.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"decoder\.onnx can't be loaded.*parley model remove"):
        kind(tmp_path, bundled_int8.manifest.interface, threads=1)


@pytest.fixture
def tiny_native(tmp_path: Path) -> NativeBackend:
    checkpoint = RandomCheckpoint(tiny_architecture())
    build_decoder(checkpoint, form="native", precision="int8", directory=tmp_path)
    interface = DecoderInterface.of(checkpoint.architecture, "native")
    return NativeBackend(tmp_path, interface, threads=1)


@pytest.mark.parametrize("block_tokens", [1, 8, 24])
def test_blocks_that_would_cut_a_tile_of_keys_are_refused(
    tiny_native: NativeBackend, block_tokens: int
) -> None:
    with pytest.raises(ConfigError, match=f"prefix_block is {block_tokens};.*16 tokens") as caught:
        tiny_native.allocate(slots=2, max_len=64, blocks=1, block_tokens=block_tokens)
    assert caught.value.param == "generator.prefix_block"
    tiny_native.allocate(slots=2, max_len=64, blocks=0, block_tokens=block_tokens)


def test_native_pieces_may_be_single_tokens(tiny_native: NativeBackend) -> None:
    tiny_native.allocate(slots=2, max_len=64, blocks=0, block_tokens=16)
    prompt = np.arange(40)
    fill(tiny_native, 0, prompt)
    fill(tiny_native, 1, prompt, cuts=range(1, 39))
    first, second = logits_behind(tiny_native, prompt, prompt)
    np.testing.assert_array_equal(first, second)


def test_a_slot_holds_a_last_tile_that_is_not_full(tiny_native: NativeBackend) -> None:
    tiny_native.allocate(slots=2, max_len=20, blocks=2, block_tokens=16)
    prompt, other = np.arange(20), np.arange(100, 120)
    fill(tiny_native, 0, prompt)
    expected = logits_behind(tiny_native, prompt)
    fill(tiny_native, 1, prompt)
    fill(tiny_native, 0, other)
    tiny_native.move(1, 0, 19)
    np.testing.assert_array_equal(logits_behind(tiny_native, prompt), expected)


def test_a_seeded_stream_is_the_same_alone_and_in_a_batch_of_sixteen(
    model: PreparedModel, alice: Tokens
) -> None:
    def ask(i: int):
        prompt = tuple(alice[50 * i : 50 * i + 20 + 5 * (i % 5)].tolist())
        return request(
            prompt, max_tokens=16, temperature=1.0, top_p=0.95, seed=1000 + i, ignore_eos=True
        )

    backend = open_backend(model, threads=2)
    listener = Listener()
    limits = config(
        slots=16,
        max_len=256,
        max_cached_tokens=4096,
        prefill_chunk=48,
        prefix_cache_bytes=64 * 16 * backend.token_bytes,
        prefix_block=16,
    )
    engine = Engine(backend, limits, eos_token_ids=(2,), deliver=listener.deliver)
    engine.start()
    try:
        together = [ask(i) for i in range(16)]
        for one in together:
            engine.submit(one)
        batch = [listener.reply(one) for one in together]
        for i in (0, 5, 11, 15):  # now alone, with some of the prompt from the prefix cache
            engine.submit(one := ask(i))
            assert listener.reply(one) == batch[i]
            assert listener.end_of(one).cached_tokens >= 16
    finally:
        engine.stop(drain_s=0.0)
    assert len({tuple(tokens) for tokens in batch}) == 16
    assert engine.stats().steps_total < 16 * 16  # they did share steps
