"""The engine's greedy replies are those of transformers, token by token; in 8 bits, nearly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from serve_app.generation.backends.opening import open_backend
from serve_app.generation.engine import Engine, EngineConfig
from serve_app.messages.generation import Frame, GenerateRequest, SamplingParams
from serve_app.models.store import PreparedModel

NEW_TOKENS = 64
QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain gravity to a child.",
    "List three uses of a paperclip.",
    "How do I boil an egg?",
    "Who wrote Hamlet, and when?",
    "Translate 'good morning' into Spanish.",
    "Tell me a joke about a programmer.",
    "What is 17 times 3?",
    "Why is the sky blue?",
]


@pytest.fixture(scope="module")
def prompts(bundled_fp32: PreparedModel) -> list[list[int]]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundled_fp32.path)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for question in QUESTIONS
    ]


@pytest.fixture(scope="module")
def replies(bundled_fp32: PreparedModel, prompts: list[list[int]]) -> list[list[int]]:
    return replies_of(bundled_fp32, prompts)


def replies_of(model: PreparedModel, prompts: list[list[int]]) -> list[list[int]]:
    """What the engine says to all of them together, through EOS."""
    replies: list[list[int]] = [[] for _ in prompts]

    def deliver(frames: dict[str, Frame]) -> None:
        for frame in frames.values():
            for stream, token in zip(frame.streams, frame.tokens, strict=True):
                replies[stream].append(token)

    engine = Engine(
        open_backend(model, threads=2),
        EngineConfig(
            slots=8,  # fewer than prompts, so that slots change hands
            max_len=256,
            max_cached_tokens=2048,
            prefill_chunk=32,
            max_queued=16,
            prefix_cache_bytes=32 << 20,
            prefix_block=16,
        ),
        eos_token_ids=model.manifest.eos_token_ids,
        deliver=deliver,
    )
    for stream, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=NEW_TOKENS, seed=0, temperature=0.0, ignore_eos=True)
        engine.submit(GenerateRequest(f"r{stream}", "test", stream, tuple(prompt), params))
    engine.start()
    engine.stop(drain_s=120.0)
    assert [len(reply) for reply in replies] == [NEW_TOKENS] * len(prompts)
    return replies


def logits_behind(reference: Any, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """Compute transformers' logits [NEW_TOKENS, vocab] for every token of a reply, given those before."""
    with torch.no_grad():
        output = reference(torch.tensor([prompt + reply]), logits_to_keep=NEW_TOKENS + 1)
    return output.logits[0, :-1]


def test_every_token_of_ten_batched_replies_is_the_one_transformers_takes(
    bundled_reference: Any, prompts: list[list[int]], replies: list[list[int]]
) -> None:
    # Given the tokens before it, each one is the likeliest: by induction the reply is transformers'
    # own greedy one, and one forward pass shows it where generating would take 64.
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply == logits_behind(bundled_reference, prompt, reply).argmax(dim=-1).tolist()


def test_a_reply_is_what_transformers_generates(
    bundled_reference: Any, prompts: list[list[int]], replies: list[list[int]]
) -> None:
    with torch.no_grad():
        output = bundled_reference.generate(
            torch.tensor([prompts[0]]),
            attention_mask=torch.ones(1, len(prompts[0]), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert replies[0] == output[0, len(prompts[0]) :].tolist()


def test_tokens_in_int8_differ_from_transformers_only_where_two_are_almost_as_likely(
    bundled_reference: Any, bundled_int8: PreparedModel, prompts: list[list[int]]
) -> None:
    gaps = []
    for prompt, reply in zip(prompts, replies_of(bundled_int8, prompts), strict=True):
        logits = logits_behind(bundled_reference, prompt, reply)
        gaps.append(logits.max(dim=-1).values - logits[range(NEW_TOKENS), reply])
    behind = torch.cat(gaps)
    assert behind.max() < math.log(2)  # what is taken instead is at least half as likely
    assert (behind == 0).float().mean() > 0.9
