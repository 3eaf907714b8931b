from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from load import quality
from load.divergence import Divergence
from load.quality import compare, windows
from load.window_decoder import WindowDecoder
from serve_app.errors import ConfigError, ModelError
from serve_app.models.store import PreparedModel

WIDTH = 64
TEXTS = {"code", "dialogue", "instructions", "narrative"}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    normaliser: np.ndarray = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted - normaliser


def test_divergence_is_its_definition() -> None:
    rng = np.random.default_rng(7)
    exact, other = (rng.normal(size=(19, 50)).astype(np.float32) for _ in range(2))
    tokens = rng.integers(50, size=19).tolist()
    found = Divergence.of(exact, other, tokens)
    log_p, log_q = log_softmax(exact), log_softmax(other)
    assert found.kl_per_token == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum() / 19)
    assert found.agreement == (log_p.argmax(1) == log_q.argmax(1)).mean()
    followed = log_q[np.arange(18), tokens[1:]]
    assert found.perplexity == pytest.approx(math.exp(-followed.mean()))
    assert found.exact_perplexity != found.perplexity


def test_a_model_is_no_distance_from_itself() -> None:
    logits = np.random.default_rng(8).normal(size=(5, 20)).astype(np.float32) * 30
    found = Divergence.of(logits, logits, [1, 2, 3, 4, 5])
    assert (found.kl_per_token, found.agreement) == (0.0, 1.0)
    assert found.perplexity == found.exact_perplexity


def test_windows_weigh_by_their_tokens() -> None:
    one = Divergence(positions=10, agreed=10, predicted=9)
    other = Divergence(positions=30, agreed=10, kl_nats=4.0, predicted=29, other_nats=38.0)
    both = one + other
    assert both.kl_per_token == 0.1
    assert both.agreement == 0.5
    assert both.perplexity == pytest.approx(math.e)


def test_windows_are_the_text_without_overlap(bundled_int8: PreparedModel) -> None:
    tokenizer = Tokenizer.from_file(str(bundled_int8.path / "tokenizer.json"))
    text = "One sentence follows the other, and none of them says very much. " * 20
    found = list(windows(tokenizer, text, WIDTH))
    assert {len(window) for window in found} == {WIDTH}
    joined = [token for window in found for token in window]
    assert joined == tokenizer.encode(text).ids[: len(joined)]
    assert len(tokenizer.encode(text).ids) - len(joined) < WIDTH


def test_a_token_that_opens_every_text_opens_every_window(bundled_int8: PreparedModel) -> None:
    definition = json.loads((bundled_int8.path / "tokenizer.json").read_text())
    opening = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [opening, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    found = list(windows(tokenizer, "Nobody knows what comes next. " * 50, WIDTH))
    assert len(found) > 2
    assert {(window[0], len(window)) for window in found} == {(0, WIDTH)}


def test_the_bundled_model_in_int8_stays_as_near_to_fp32_as_it_promises(
    prepared_home: Path,
    bundled_fp32: PreparedModel,
    bundled_int8: PreparedModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(prepared_home))
    path = tmp_path / "quality.json"
    result = CliRunner().invoke(
        quality.app, ["--precision", "int8", "--windows", "1", "--json", str(path)]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_bytes())
    assert report["precision"] == "int8"
    assert report["texts"].keys() == TEXTS | {"all"}
    every = report["texts"]["all"]
    assert every["positions"] == 256 * len(TEXTS)
    assert 0 < every["kl_per_token"] < 0.01
    assert 0.85 < every["agreement"] < 1
    # Prose that it hasn't learnt by heart, and yet far from noise.
    assert 5 < every["exact_perplexity"] < 50
    assert every["perplexity"] == pytest.approx(every["exact_perplexity"], rel=0.03)
    assert f"{every['kl_per_token']:.4f}" in result.output


def test_a_standard_model_is_compared_too(
    bundled_fp32: PreparedModel, bundled_standard: PreparedModel
) -> None:
    found = compare(bundled_fp32, bundled_standard, width=WIDTH, most=1)
    assert abs(found["all"].kl_per_token) < 1e-6
    assert found["all"].agreement == 1.0


def test_windows_wider_than_the_texts_are_refused(bundled_int8: PreparedModel) -> None:
    with pytest.raises(ConfigError, match="--width"):
        compare(bundled_int8, bundled_int8, width=4096)


def test_windows_wider_than_the_context_are_refused(bundled_int8: PreparedModel) -> None:
    with pytest.raises(ModelError, match="context"):
        WindowDecoder(bundled_int8, width=100_000, threads=1)
