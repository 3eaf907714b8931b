from __future__ import annotations

from typing import Any

import orjson
import pytest

from serve_app.api.body import parse_body
from serve_app.api.chat import ChatCompletionRequest
from serve_app.api.completions import CompletionRequest
from serve_app.api.responses import ResponseRequest
from serve_app.api.sampling import SamplingDefaults
from serve_app.errors import InvalidRequest
from serve_app.messages.generation import SamplingParams
from serve_app.messages.tokenization import Message


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_body(orjson.dumps(body), ChatCompletionRequest, max_depth=32)


def completion(**fields: Any) -> CompletionRequest:
    body = {"model": "m", "prompt": "hi", **fields}
    return parse_body(orjson.dumps(body), CompletionRequest, max_depth=32)


def response(**fields: Any) -> ResponseRequest:
    body = {"model": "m", "input": "hi", **fields}
    return parse_body(orjson.dumps(body), ResponseRequest, max_depth=32)


def test_a_silent_request_samples_as_openai_documents() -> None:
    sampling = chat().sampling(max_tokens=7, vocab_size=100, seed=5)
    assert sampling == SamplingParams(max_tokens=7, seed=5)


def test_the_models_own_defaults_apply_where_the_request_is_silent() -> None:
    own = SamplingDefaults(temperature=0.2, top_p=0.9, top_k=5, min_p=0.01, repetition_penalty=1.1)
    silent = chat().sampling(max_tokens=7, vocab_size=100, seed=5, defaults=own)
    assert (silent.temperature, silent.top_p, silent.top_k) == (0.2, 0.9, 5)
    assert (silent.min_p, silent.repetition_penalty) == (0.01, 1.1)
    spoken = chat(temperature=0, top_k=-1).sampling(
        max_tokens=7, vocab_size=100, seed=5, defaults=own
    )
    assert (spoken.temperature, spoken.top_k, spoken.top_p) == (0.0, 0, 0.9)


@pytest.mark.parametrize("parse", [chat, completion, response])
def test_every_sampling_parameter_reaches_the_engine(parse: Any) -> None:
    request = parse(
        temperature=0.5,
        top_p=0.8,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=-0.4,
        logit_bias={"3": 5, "0": -100},
        seed=11,
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=[8, 9],
        stop="END",
        priority=3,
        timeout=1.5,
    )
    assert request.sampling(max_tokens=9, vocab_size=100, seed=5) == SamplingParams(
        max_tokens=9,
        seed=11,
        min_tokens=2,
        temperature=0.5,
        top_p=0.8,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=-0.4,
        logit_bias=((3, 5.0), (0, -100.0)),
        stop_token_ids=(8, 9),
        ignore_eos=True,
    )
    assert (request.stop, request.priority, request.timeout) == (["END"], 3, 1.5)


def test_each_choice_gets_its_own_seed_and_the_same_one_again() -> None:
    seeds = [
        chat(seed=2**63 - 1, n=3).sampling(max_tokens=1, vocab_size=9, seed=0, choice=i).seed
        for i in range(3)
    ]
    assert seeds == [2**63 - 1, 2**63, 2**63 + 1]
    unseeded = [chat().sampling(max_tokens=1, vocab_size=9, seed=70, choice=i).seed for i in (0, 1)]
    assert unseeded == [70, 71]


def test_a_negative_seed_becomes_a_64_bit_one() -> None:
    assert chat(seed=-1).sampling(max_tokens=1, vocab_size=9, seed=0).seed == 2**64 - 1


def test_the_minimum_never_exceeds_what_the_context_leaves() -> None:
    assert chat(min_tokens=50).sampling(max_tokens=10, vocab_size=9, seed=0).min_tokens == 10


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"logit_bias": {"9": 1}}, "logit_bias"), ({"stop_token_ids": [9]}, "stop_token_ids")],
)
def test_a_token_outside_of_the_vocabulary_is_refused(fields: dict[str, Any], param: str) -> None:
    chat(**fields).sampling(max_tokens=1, vocab_size=10, seed=0)
    with pytest.raises(InvalidRequest) as refusal:
        chat(**fields).sampling(max_tokens=1, vocab_size=9, seed=0)
    assert refusal.value.param == param


def test_a_prompt_token_outside_of_the_vocabulary_is_refused() -> None:
    assert completion(prompt=[[1, 8], [0]]).checked_prompts(9) == ((1, 8), (0,))
    for prompt in ([[1, 9]], [-1]):
        with pytest.raises(InvalidRequest):
            completion(prompt=prompt).checked_prompts(9)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_all_forms_of_a_prompt_become_one(prompt: object, prompts: object) -> None:
    assert completion(prompt=prompt).prompt == prompts


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        (chat(), None),
        (chat(max_tokens=3), 3),
        (chat(max_completion_tokens=4), 4),
        (chat(max_tokens=4, max_completion_tokens=4), 4),
        (completion(), 16),
        (completion(max_tokens=None), 16),
        (completion(max_tokens=5), 5),
        (response(), None),
        (response(max_output_tokens=6), 6),
    ],
)
def test_the_token_limit_is_read_from_where_each_api_has_it(
    request_: ChatCompletionRequest | CompletionRequest | ResponseRequest, limit: int | None
) -> None:
    assert request_.token_limit == limit


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (chat(), None),
        (chat(logprobs=False), None),
        (chat(logprobs=True), 0),
        (chat(logprobs=True, top_logprobs=20), 20),
        (completion(), None),
        (completion(logprobs=0), 0),
        (completion(logprobs=5), 5),
        (response(), None),
        (response(include=["message.output_text.logprobs"]), 0),
        (response(include=["message.output_text.logprobs"], top_logprobs=3), 3),
    ],
)
def test_logprobs_are_read_from_where_each_api_has_them(
    request_: ChatCompletionRequest | CompletionRequest | ResponseRequest, wanted: int | None
) -> None:
    assert request_.logprobs_wanted == wanted
    assert request_.sampling(max_tokens=20, vocab_size=9, seed=0).logprobs == wanted


def test_messages_reach_the_chat_template_as_text() -> None:
    request = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "name": "Ann",
            },
            {"role": "assistant", "content": "", "refusal": None, "tool_calls": None},
        ]
    )
    assert request.to_messages() == (
        Message("system", "Be brief."),
        Message("user", "a\nb", "Ann"),
        Message("assistant", ""),
    )


def test_a_responses_own_output_can_be_sent_back_as_input() -> None:
    output = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": None,
        "content": [
            {"type": "output_text", "text": "hello", "annotations": [], "logprobs": [{"x": 1}]}
        ],
    }
    request = response(
        input=[
            {"role": "user", "content": "hi"},
            output,
            {"role": "user", "content": [{"type": "input_text", "text": "so?"}]},
        ]
    )
    assert request.to_messages() == (
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("user", "so?"),
    )


@pytest.mark.parametrize("form", ["conv_abc", {"id": "conv_abc"}])
def test_a_conversation_is_named_by_its_id_or_by_an_object(form: object) -> None:
    assert response(conversation=form).conversation_id == "conv_abc"
    assert response(conversation=None).conversation_id is None
