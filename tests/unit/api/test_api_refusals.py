from __future__ import annotations

from typing import Any

import orjson
import pytest

from serve_app.api.body import WireModel, parse_body
from serve_app.api.chat import ChatCompletionRequest
from serve_app.api.completions import CompletionRequest
from serve_app.api.responses import ResponseRequest
from serve_app.api.tokenize import TokenizeRequest
from serve_app.errors import ConversationNotFound, InvalidRequest, UnsupportedParameter

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}
RESPONSE = {"model": "m", "input": "hi"}
BASES: dict[type[WireModel], dict[str, Any]] = {
    ChatCompletionRequest: CHAT,
    CompletionRequest: COMPLETION,
    ResponseRequest: RESPONSE,
}
NOT_OFFERED = [(model, name) for model in BASES for name in model.NEUTRAL]


def parse(model: type[WireModel], body: dict[str, Any]) -> WireModel:
    return parse_body(orjson.dumps(body), model, max_depth=32)


@pytest.mark.parametrize(("model", "name"), NOT_OFFERED)
def test_what_is_not_offered_is_refused_by_name(model: type[WireModel], name: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        parse(model, {**BASES[model], name: {"asks": "for something"}})
    assert refusal.value.param == name
    assert refusal.value.code == "unsupported_parameter"
    assert refusal.value.status == 400


@pytest.mark.parametrize(("model", "name"), NOT_OFFERED)
def test_what_asks_for_nothing_is_accepted(model: type[WireModel], name: str) -> None:
    plain = parse(model, BASES[model])
    for value in (None, *model.NEUTRAL[name]):
        assert parse(model, {**BASES[model], name: value}) == plain


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        (ChatCompletionRequest, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (ChatCompletionRequest, "tool_choice", "required"),
        (ChatCompletionRequest, "response_format", {"type": "json_object"}),
        (ChatCompletionRequest, "modalities", ["text", "audio"]),
        (ChatCompletionRequest, "store", True),
        (ChatCompletionRequest, "store", 0),
        (ChatCompletionRequest, "reasoning_effort", "high"),
        (ChatCompletionRequest, "service_tier", "flex"),
        (ChatCompletionRequest, "guided_json", {}),
        (ChatCompletionRequest, "Temperature", 1),
        (CompletionRequest, "echo", True),
        (CompletionRequest, "suffix", "end"),
        (CompletionRequest, "best_of", 2),
        (CompletionRequest, "metadata", {"k": "v"}),
        (CompletionRequest, "truncation", "auto"),
        (CompletionRequest, "messages", CHAT["messages"]),
        (ResponseRequest, "text", {"format": {"type": "json_schema"}}),
        (ResponseRequest, "n", 1),
        (ResponseRequest, "max_tokens", 1),
    ],
)
def test_a_parameter_that_asks_for_more_is_refused_by_name(
    model: type[WireModel], name: str, value: object
) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        parse(model, {**BASES[model], name: value})
    assert refusal.value.param == name


@pytest.mark.parametrize("penalty", [0, 1e-39, 0.009, 10.1])
@pytest.mark.parametrize("model", BASES)
def test_a_penalty_that_could_overflow_logits_is_refused(
    model: type[WireModel], penalty: float
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(model, {**BASES[model], "repetition_penalty": penalty})
    assert (refusal.value.param, refusal.value.code) == ("repetition_penalty", "invalid_value")


@pytest.mark.parametrize("name", ["foo", "extra_body", ""])
@pytest.mark.parametrize("model", BASES)
def test_an_unknown_parameter_is_refused_by_name_even_as_null(
    model: type[WireModel], name: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        parse(model, {**BASES[model], name: None})
    assert refusal.value.param == name


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].tool_call_id"),
        ({"role": "function", "content": "x"}, "messages[0].role"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "messages[0].audio"),
        ({"role": "user", "content": "x", "cache_control": {}}, "messages[0].cache_control"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].type",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]},
            "messages[0].content[1].type",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
            "messages[0].content[0].cache_control",
        ),
    ],
)
def test_what_a_message_may_not_hold_is_refused_by_path(
    message: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        parse(ChatCompletionRequest, {"model": "m", "messages": [message]})
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "function_call_output", "call_id": "1", "output": "x"}, "input[0].type"),
        ({"type": "item_reference", "id": "msg_1"}, "input[0].type"),
        ({"type": "reasoning", "id": "rs_1", "summary": []}, "input[0].type"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[0].content[0].type"),
        ({"role": "tool", "content": "x"}, "input[0].role"),
        ({"role": "user", "content": "x", "phase": "commentary"}, "input[0].phase"),
    ],
)
def test_what_an_item_may_not_be_is_refused_by_path(item: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        parse(ResponseRequest, {"model": "m", "input": [item]})
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input[0].content"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"conversation": 5}, "conversation"),
        ({"conversation": {}}, "conversation.id"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"instructions": []}, "instructions"),
    ],
)
def test_a_wrong_response_request_is_refused_with_its_path(
    body: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(ResponseRequest, {**RESPONSE, **body})
    assert refusal.value.param == param


@pytest.mark.parametrize("conversation", ["", "conv_", "conv_x}{y", "conv_a:b", "resp_1", "conv_é"])
def test_what_can_be_no_conversation_id_is_a_404(conversation: str) -> None:
    request = parse_body(
        orjson.dumps({**RESPONSE, "conversation": conversation}), ResponseRequest, max_depth=32
    )
    with pytest.raises(ConversationNotFound):
        _ = request.conversation_id


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        (5, "prompt"),
        ([""], "prompt[0]"),
        ([[]], "prompt[0]"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        ([[1, 2], [3, True]], "prompt[1][1]"),
        (["a"] * 129, "prompt"),
        (None, "prompt"),
    ],
)
def test_a_wrong_prompt_is_refused_with_its_path(prompt: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(CompletionRequest, {"model": "m", "prompt": prompt})
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "a", "prompt": "b"},
        {"text": "a", "messages": CHAT["messages"]},
        {"messages": CHAT["messages"], "add_special_tokens": True},
        {"text": "a", "add_generation_prompt": True},
        {"messages": []},
    ],
)
def test_a_tokenize_request_is_for_one_thing(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        parse(TokenizeRequest, body)
