"""The decoder graph gives the logits that transformers gives for the same checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_run import DecoderRun, open_session
from tokenizers import Tokenizer
from torch.nn.functional import kl_div
from transformers import AutoConfig, AutoModelForCausalLM

from serve_app.models.bundled import bundled_model
from serve_app.models.decoder_graph import build_decoder
from serve_app.models.decoder_interface import DecoderInterface, Form
from serve_app.models.gguf_checkpoint import GgufCheckpoint
from serve_app.models.precision.base import PrecisionName
from serve_app.models.safetensors_checkpoint import SafetensorsCheckpoint
from serve_app.models.sources import open_checkpoint
from serve_app.models.store import PreparedModel

TEXT = Path(__file__).parent.parent / "data" / "alice_chapter_1.txt"

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-untied-no-groups": ("llama", {"num_key_value_heads": 4}),
    "llama-one-kv-head": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "llama-rope-llama3": ("llama", {"rope_parameters": ROPE_LLAMA3}),
    "llama-rope-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 4.0}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-wide-heads": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral-sliding-window": ("mistral", {"sliding_window": 9}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("qwen2", {}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-wide-heads": ("qwen3", {"head_dim": 32}),
}
FORMS: dict[Form, PrecisionName] = {"cpu": "fp32", "native": "int8", "standard": "fp32"}
CACHE_LENGTH = 64  # of a slot, where the form fixes it


@dataclass(frozen=True)
class Pair:
    """A transformers model and the session of the graph built from its checkpoint."""

    model: Any
    session: Any
    interface: DecoderInterface

    def expected(self, tokens: list[int]) -> np.ndarray:
        """Compute the logits of all positions."""
        return reference_logits(self.model, tokens)

    def run(self, *, slots: int = 1, max_len: int = 64) -> DecoderRun:
        return DecoderRun(self.session, self.interface, slots=slots, max_len=max_len)

    def assert_close(self, actual: np.ndarray, expected: np.ndarray) -> None:
        """Compare to within rounding: of single precision, or of 8 bits in the native form."""
        assert expected.std() > 0.5, "logits this flat would agree whatever the graph did"
        assert actual.shape == expected.shape
        if self.interface.form == "native":
            assert 0 < divergence(actual, expected) < 0.01
        else:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(self.interface.vocab_size, size=count).tolist()


def reference_logits(model: Any, tokens: list[int], *, last: int = 0) -> np.ndarray:
    """Compute transformers' logits of all positions, or of the last ones."""
    with torch.no_grad():
        output = model(torch.tensor([tokens]), logits_to_keep=last)
    logits: np.ndarray = output.logits[0].numpy()
    return logits


def random_model(family: str, options: dict[str, Any]) -> Any:
    """Make a model in which every weight counts: fresh ones have unit norms, no biases, flat logits."""
    config = AutoConfig.for_model(family, **{**SMALL, **options})
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() == 1:
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
    return model


def divergence(actual: np.ndarray, expected: np.ndarray) -> float:
    """Compute the mean KL divergence of rows of logits from others, in nats."""
    found, wanted = (
        torch.log_softmax(torch.from_numpy(logits), dim=-1) for logits in (actual, expected)
    )
    return kl_div(found, wanted, reduction="batchmean", log_target=True).item()


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    """A random model, and the folder that it is saved in."""
    model = random_model(*request.param)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module", params=FORMS.items(), ids=FORMS.keys())
def pair(
    request: pytest.FixtureRequest,
    saved: tuple[Any, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    form, precision = request.param
    model, source = saved
    folder = tmp_path_factory.mktemp(form)
    checkpoint = SafetensorsCheckpoint(source)
    length = CACHE_LENGTH if form == "standard" else None
    build_decoder(checkpoint, form=form, precision=precision, directory=folder, cache_length=length)
    interface = DecoderInterface.of(checkpoint.architecture, form, cache_length=length)
    return Pair(model, open_session(folder, form), interface)


def test_prefill_in_one_go(pair: Pair) -> None:
    tokens = pair.tokens(40)
    pair.assert_close(pair.run().step([tokens]), pair.expected(tokens))


def test_chunked_prefill_into_a_slot_of_a_larger_buffer(pair: Pair) -> None:
    tokens = pair.tokens(40, seed=1)
    run = pair.run(slots=4)
    before = {name: run.by_position(name) for name in run.cache}
    chunks = np.split(np.array(tokens), [7, 8, 29])
    logits = np.concatenate([run.step([chunk.tolist()], slot=2) for chunk in chunks])
    pair.assert_close(logits, pair.expected(tokens))
    for name in run.cache:
        after = run.by_position(name)
        np.testing.assert_array_equal(after[[0, 1, 3]], before[name][[0, 1, 3]])
        np.testing.assert_array_equal(after[2, :, 40:], before[name][2, :, 40:])


def test_ragged_batched_decode_in_place(pair: Pair) -> None:
    sequences = [pair.tokens(count, seed=count) for count in (30, 6, 19)]
    steps = 5
    run = pair.run(slots=4)
    for slot, sequence in enumerate(sequences):
        run.step([sequence[:-steps]], slot=slot, rows=[])
    logits = [run.step([[sequence[step]] for sequence in sequences]) for step in range(-steps, 0)]
    for slot, sequence in enumerate(sequences):
        pair.assert_close(
            np.stack([step[slot] for step in logits]), pair.expected(sequence)[-steps:]
        )


def test_prompts_prefilled_as_a_batch(pair: Pair) -> None:
    prompts = [pair.tokens(12, seed=seed) for seed in (3, 4)]
    logits = pair.run(slots=2).step(prompts)
    pair.assert_close(logits, np.concatenate([pair.expected(prompt) for prompt in prompts]))


def test_only_the_wanted_rows_have_logits(pair: Pair) -> None:
    tokens = pair.tokens(20, seed=5)
    logits = pair.run().step([tokens], rows=[19, 3])
    pair.assert_close(logits, pair.expected(tokens)[[19, 3]])


def test_no_wanted_rows_give_no_logits_and_still_fill_the_cache(pair: Pair) -> None:
    tokens = pair.tokens(20, seed=6)
    run = pair.run()
    assert run.step([tokens[:-1]], rows=[]).shape == (0, pair.interface.vocab_size)
    pair.assert_close(run.step([tokens[-1:]]), pair.expected(tokens)[-1:])


# The bundled model


@pytest.fixture(scope="module")
def alice() -> list[int]:
    tokenizer = Tokenizer.from_str(GgufCheckpoint(bundled_model()).tokenizer().tokenizer_json)
    tokens: list[int] = tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids
    return tokens


@pytest.fixture(scope="module", params=["bundled_fp32", "bundled_standard"])
def bundled(request: pytest.FixtureRequest, bundled_reference: Any) -> Pair:
    model: PreparedModel = request.getfixturevalue(request.param)
    return Pair(bundled_reference, open_session(model.path), model.manifest.interface)


@pytest.fixture(scope="module")
def near(bundled_reference: Any, alice: list[int]) -> np.ndarray:
    """Transformers' logits of the text's first 384 tokens."""
    return reference_logits(bundled_reference, alice[:384])


@pytest.fixture(scope="module")
def far(bundled_reference: Any, alice: list[int]) -> np.ndarray:
    """Transformers' logits of the last 8 of the text's first 1024 tokens."""
    return reference_logits(bundled_reference, alice[:1024], last=8)


def test_bundled_model_in_fp32_agrees(bundled: Pair, near: np.ndarray, alice: list[int]) -> None:
    tokens, expected = alice[:384], near
    assert np.abs(bundled.run(max_len=384).step([tokens]) - expected).max() < 1e-3
    run = bundled.run(slots=2, max_len=512)
    run.step([tokens[:128]], slot=1, rows=[])
    chunked = [run.step([tokens[128:300]], slot=1)]
    chunked += [run.step([[token]], slot=1) for token in tokens[300:316]]
    assert np.abs(np.concatenate(chunked) - expected[128:316]).max() < 1e-3


def test_bundled_model_agrees_far_into_its_context(
    bundled: Pair, far: np.ndarray, alice: list[int]
) -> None:
    # Rotary angles are large here, so that an error in a frequency would show.
    tokens = alice[:1024]
    run = bundled.run(max_len=1024)
    logits = run.step([tokens], rows=range(1016, 1024))
    assert np.abs(logits - far).max() < 1e-3


def test_bundled_model_in_int8_stays_within_a_hundredth_nat(
    bundled_fp32: PreparedModel,
    bundled_int8: PreparedModel,
    bundled_int8_cpu: PreparedModel,
    alice: list[int],
) -> None:
    width = 256
    exact, *rounded = (
        (open_session(model.path, model.manifest.form), model.manifest.interface)
        for model in (bundled_fp32, bundled_int8, bundled_int8_cpu)
    )
    divergences = []
    for start in range(0, len(alice) - width + 1, width):
        window = alice[start : start + width]
        expected = DecoderRun(*exact, slots=1, max_len=width).step([window])
        divergences.append(
            [
                divergence(DecoderRun(*run, slots=1, max_len=width).step([window]), expected)
                for run in rounded
            ]
        )
    assert len(divergences) == 10
    means = np.mean(divergences, axis=0)
    assert (means > 0).all()
    assert (means < 0.01).all()


@pytest.mark.parametrize(("precision", "most"), [("int8-w8a8", 0.03), ("fp8-w8a8", 0.06)])
def test_bundled_model_in_8_bit_products_stays_close(
    bundled_fp32: PreparedModel,
    tmp_path: Path,
    alice: list[int],
    precision: PrecisionName,
    most: float,
) -> None:
    width, starts = 256, (0, 1024)
    exact = open_session(bundled_fp32.path, bundled_fp32.manifest.form)
    build_decoder(
        open_checkpoint("bundled", downloads=tmp_path),
        form="standard",
        precision=precision,
        directory=tmp_path,
        cache_length=width,
    )
    session = open_session(tmp_path)
    interface = DecoderInterface.of(
        bundled_fp32.manifest.architecture, "standard", dtype="float16", cache_length=width
    )
    found = []
    for start in starts:
        window = alice[start : start + width]
        run = DecoderRun(exact, bundled_fp32.manifest.interface, slots=1, max_len=width)
        expected = run.step([window])
        rounded = DecoderRun(session, interface, slots=1, max_len=width).step([window])
        found.append(divergence(rounded, expected))
    assert 0.001 < np.mean(found) < most


def test_bundled_model_in_int8_agrees_with_transformers(
    bundled_int8: PreparedModel, near: np.ndarray, alice: list[int]
) -> None:
    interface = bundled_int8.manifest.interface
    session = open_session(bundled_int8.path, interface.form)
    tokens = alice[:384]
    run = DecoderRun(session, interface, slots=2, max_len=512)
    run.step([tokens[:128]], slot=1, rows=[])
    logits = [run.step([tokens[128:300]], slot=1)]
    logits += [run.step([[token]], slot=1) for token in tokens[300:]]
    assert 0 < divergence(np.concatenate(logits), near[128:]) < 0.01
