from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serve_app.errors import ConfigError
from serve_app.generation.backends.base import Piece
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.settings import Settings

VOCAB = 49152
NOBODY = (np.zeros(0, np.int64), np.zeros(0, np.int32))


def allocated(backend: SimulatedBackend) -> SimulatedBackend:
    backend.allocate(slots=2, max_len=64, blocks=0, block_tokens=8)
    return backend


def logits_behind(backend: SimulatedBackend, prompt: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute a prompt in slot 0, in one step."""
    before = len(prompt) - 1
    piece = Piece(0, 0, prompt[:before])
    return backend.step([piece], prompt[before:], np.array([before], np.int32))


def test_a_prompt_and_decode_steps_come_to_the_same_state() -> None:
    tokens = np.random.default_rng(3).integers(512, size=20)
    whole, pieces, stepwise, backwards = (allocated(SimulatedBackend()) for _ in range(4))
    expected = logits_behind(whole, tokens)
    pieces.step([Piece(0, 0, tokens[:5])], *NOBODY)
    # Of one slot, one piece behind the other, and its last token in the same step.
    both = [Piece(0, 5, tokens[5:7]), Piece(0, 7, tokens[7:19])]
    logits = pieces.step(both, tokens[19:], np.array([19], np.int32))
    np.testing.assert_array_equal(logits, expected)
    for length, token in enumerate(tokens):
        logits = stepwise.step([], np.array([token]), np.array([length], np.int32))
    np.testing.assert_array_equal(logits, expected)
    assert (logits_behind(backwards, tokens[::-1].copy()) != expected).any()


def test_a_step_without_anybody_to_decode_has_no_logits() -> None:
    backend = allocated(SimulatedBackend())
    tokens = np.arange(3)
    assert backend.step([Piece(1, 0, tokens)], *NOBODY).shape == (0, 512)


def test_a_wrong_slot_is_noticed() -> None:
    backend = allocated(SimulatedBackend())
    prompts = [Piece(0, 0, np.array([1, 2, 3])), Piece(1, 0, np.array([1, 9, 3]))]
    logits = backend.step(prompts, np.array([5, 5]), np.array([3, 3], np.int32))
    assert logits[0].argmax() != logits[1].argmax()


def test_every_token_of_a_speaking_one_is_text(bundled_tokenizer: Path) -> None:
    file = bundled_tokenizer / "tokenizer.json"
    backend = allocated(SimulatedBackend.speaking(file, vocab_size=VOCAB, context_length=64))
    tokenizer = Tokenizer.from_file(str(file))
    # Prompts may have any token of the vocabulary, however narrow the logits are.
    prompt = np.array([VOCAB - 1, 7, 2], np.int64)
    logits = logits_behind(backend, prompt)
    chosen: list[int] = []
    for length in range(3, 60):
        chosen += np.flatnonzero(logits[0]).tolist()
        logits = backend.step([], logits.argmax(axis=1), np.array([length], np.int32))
    texts = [tokenizer.decode([token]) for token in chosen]
    assert len(set(texts)) > 100
    assert all(text and "\ufffd" not in text for text in texts)


def test_noise_is_refused_under_another_name() -> None:
    for name in (None, "SmolLM2-135M-Instruct"):
        with pytest.raises(ConfigError, match=r"model\.name"):
            Settings.load({"generator": {"backend": "simulated"}, "model": {"name": name}})
    named = Settings.load({"generator": {"backend": "simulated"}, "model": {"name": "simulated"}})
    assert named.generator.backend == "simulated"
    assert Settings.load().generator.backend == "auto"
