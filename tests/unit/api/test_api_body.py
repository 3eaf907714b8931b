from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.api.body import WireModel, parse_body
from serve_app.api.chat import ChatCompletionRequest
from serve_app.api.completions import CompletionRequest
from serve_app.api.conversations import ConversationRequest
from serve_app.api.responses import ResponseRequest
from serve_app.api.tokenize import DetokenizeRequest, TokenizeRequest
from serve_app.errors import BodyTooDeep, InvalidRequest, ParleyError, UnsupportedParameter

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ALL_REQUESTS = [
    ChatCompletionRequest,
    CompletionRequest,
    ResponseRequest,
    ConversationRequest,
    TokenizeRequest,
    DetokenizeRequest,
]


def chat(body: bytes | dict[str, Any], max_depth: int = 32) -> ChatCompletionRequest:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return parse_body(data, ChatCompletionRequest, max_depth=max_depth)


def refusal_of(data: bytes, model: type[WireModel]) -> ParleyError | None:
    """Return what the body is refused with, or None; any other exception is the test's failure."""
    try:
        parse_body(data, model, max_depth=32)
    except ParleyError as error:
        return error
    return None


def with_raw(name: str, json: bytes) -> bytes:
    return orjson.dumps(CHAT)[:-1] + b',"' + name.encode() + b'":' + json + b"}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"model":"\\ud800"}',
        b'{"temperature":NaN}',
        b'{"temperature":-Infinity}',
        b'{"temperature":1e999}',
        b'{"a":1}{"b":2}',
        b"{'model':'m'}",
    ],
)
def test_what_is_no_json_object_is_refused_as_invalid_json(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat(data)
    assert refusal.value.code == "invalid_json"
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'{"model":"a","model":"b"}', "model"),
        (b'{"model":"m","messages":[{"role":"user","role":"system","content":"x"}]}', "role"),
        (b'{"mod\\u0065l":"a","model":"b"}', "model"),
        (b'{"metadata":{"\\\\\\"":"1","\\\\\\"":"2"}}', '\\"'),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat(data)
    assert refusal.value.param == name
    assert "twice" in refusal.value.message


def test_brackets_quotes_and_colons_inside_strings_count_for_nothing() -> None:
    text = 'a "quoted": [[[[[[{{{{{{ \\" \\\\ : tail\\'
    body = {**CHAT, "messages": [{"role": "user", "content": text}]}
    assert chat(body, max_depth=3).messages[0].content == text


def test_the_depth_limit_is_exact() -> None:
    assert chat(CHAT, max_depth=3).model == "m"
    with pytest.raises(BodyTooDeep, match="deeper than 2"):
        chat(CHAT, max_depth=2)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":[', b'{"messages":['])
def test_nesting_of_a_hundred_thousand_is_refused_at_once(opening: bytes) -> None:
    began = time.process_time()
    with pytest.raises(BodyTooDeep):
        chat(opening * 100_000)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "data",
    [
        b'"\\"' * 350_000,
        b'"' * 1_000_000,
        b"\\" * 1_000_000,
        b'{"messages":[' + b"[]," * 330_000 + b"[]]}",
        b'{"messages":[' + b'{"a":1,"a":1},' * 70_000 + b"{}]}",
        b"{" + b",".join(b'"%d":0' % number for number in range(100_000)) + b"}",
        with_raw("metadata", orjson.dumps({str(n): n for n in range(90_000)})),
        with_raw("logit_bias", orjson.dumps({str(n): "x" for n in range(80_000)})),
        with_raw("stop", orjson.dumps([""] * 300_000)),
        with_raw("stop_token_ids", orjson.dumps([-1] * 300_000)),
    ],
)
def test_a_hostile_megabyte_takes_no_long_time(data: bytes) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        chat(data)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("raw", "param", "code"),
    [
        (b'"temperature":"1"', "temperature", "invalid_type"),
        (b'"temperature":2.1', "temperature", "invalid_value"),
        (b'"temperature":-1', "temperature", "invalid_value"),
        (b'"top_p":0', "top_p", "invalid_value"),
        (b'"n":true', "n", "invalid_type"),
        (b'"n":1.0', "n", "invalid_type"),
        (b'"n":0', "n", "invalid_value"),
        (b'"stream":1', "stream", "invalid_type"),
        (b'"seed":123456789012345678901234567890', "seed", "invalid_type"),
        (b'"seed":9223372036854775808', "seed", "invalid_value"),
        (b'"max_tokens":0', "max_tokens", "invalid_value"),
        (b'"max_tokens":99999999999', "max_tokens", "invalid_value"),
        (b'"max_tokens":5,"max_completion_tokens":6', "max_tokens", "invalid_value"),
        (b'"max_tokens":5,"min_tokens":6', "min_tokens", "invalid_value"),
        (b'"logprobs":true,"top_logprobs":21', "top_logprobs", "invalid_value"),
        (b'"top_logprobs":3', "top_logprobs", "invalid_value"),
        (b'"stop":[' + b",".join([b'"a"'] * 17) + b"]", "stop", "invalid_value"),
        (b'"stop":["a",""]', "stop[1]", "invalid_value"),
        (b'"stop":["a",5]', "stop[1]", "invalid_type"),
        (b'"stop":7', "stop", "invalid_type"),
        (b'"stop_token_ids":[1,-1]', "stop_token_ids[1]", "invalid_value"),
        (b'"logit_bias":{"50256":-101}', "logit_bias[50256]", "invalid_value"),
        (b'"logit_bias":{"the":1}', "logit_bias.the", "invalid_value"),
        (b'"logit_bias":{"01":1}', "logit_bias.01", "invalid_value"),
        (b'"logit_bias":[1]', "logit_bias", "invalid_type"),
        (b'"metadata":{"a":1}', "metadata.a", "invalid_type"),
        (b'"stream_options":{"include_usage":true}', "stream_options", "invalid_value"),
        (b'"stream":true,"stream_options":[]', "stream_options", "invalid_type"),
        (b'"truncation":"middle"', "truncation", "invalid_value"),
        (b'"timeout":0', "timeout", "invalid_value"),
        (b'"priority":101', "priority", "invalid_value"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(raw: bytes, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat(orjson.dumps(CHAT)[:-1] + b"," + raw + b"}")
    assert (refusal.value.param, refusal.value.code) == (param, code)
    assert refusal.value.message.startswith(f"'{param}' ")
    assert refusal.value.message.endswith(".")


@pytest.mark.parametrize(
    ("name", "limit", "entries"),
    [
        ("metadata", 16, {str(number): "x" for number in range(17)}),
        ("logit_bias", 1024, {str(number): 1 for number in range(1025)}),
        ("stop_token_ids", 128, list(range(129))),
    ],
)
def test_one_entry_above_the_limit_is_refused(
    name: str, limit: int, entries: dict[str, Any] | list[int]
) -> None:
    with pytest.raises(InvalidRequest, match=f"at most {limit} entries") as refusal:
        chat({**CHAT, name: entries})
    assert refusal.value.param == name
    fewer = dict(list(entries.items())[1:]) if isinstance(entries, dict) else entries[1:]
    assert len(getattr(chat({**CHAT, name: fewer}), name)) == limit


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([], "messages", "invalid_value"),
        (None, "messages", "missing_required_parameter"),
        ("hi", "messages", "invalid_type"),
        (["hi"], "messages[0]", "invalid_type"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": ""}], "messages[0].content", "invalid_value"),
        ([{"role": "user", "content": []}], "messages[0].content", "invalid_value"),
        ([{"role": "user", "content": 5}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "invalid_type"),
        ([{"content": "x"}], "messages[0].role", "missing_required_parameter"),
        ([{"role": "robot", "content": "x"}], "messages[0].role", "invalid_value"),
        (
            [{"role": "user", "content": [{"type": "text", "text": 1}]}],
            "messages[0].content[0].text",
            "invalid_type",
        ),
        (
            [CHAT["messages"][0], {"role": "user", "content": [{"text": "x"}]}],
            "messages[1].content[0].type",
            "invalid_type",
        ),
    ],
)
def test_a_wrong_message_is_refused_with_its_path(messages: Any, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat({"model": "m", "messages": messages})
    assert (refusal.value.param, refusal.value.code) == (param, code)


def test_a_very_long_unknown_name_is_not_echoed_whole() -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        chat({**CHAT, "x" * 100_000: 1})
    assert len(refusal.value.message) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("model", ALL_REQUESTS)
@given(data=st.binary(max_size=200))
@settings(max_examples=50)
def test_arbitrary_bytes_end_in_a_model_or_a_parley_error(
    model: type[WireModel], data: bytes
) -> None:
    for body in (data, b'{"model":' + data + b"}", b'{"model":"m","input":' + data + b"}"):
        refusal = refusal_of(body, model)
        assert refusal is None or refusal.status == 400


@pytest.mark.parametrize("model", ALL_REQUESTS)
@given(data=st.data())
@settings(max_examples=200)
def test_arbitrary_json_ends_in_a_model_or_a_parley_error(
    model: type[WireModel], data: st.DataObject
) -> None:
    names = st.sampled_from([*model.model_fields, *model.NEUTRAL]) | st.text(max_size=5)
    body: dict[str, Any] = {
        "model": "m",
        "messages": CHAT["messages"],
        "input": "hi",
        "prompt": "hi",
    }
    body = {name: value for name, value in body.items() if name in model.model_fields}
    body.update(data.draw(st.dictionaries(names, json_values, max_size=4)))
    refusal = refusal_of(orjson.dumps(body), model)
    if refusal is not None:
        assert refusal.status == 400
        assert refusal.message.endswith(".")
        assert len(refusal.message) < 500


@given(messages=json_values)
@settings(max_examples=200)
def test_arbitrary_messages_end_in_a_model_or_a_parley_error(messages: Any) -> None:
    for shape in (
        messages,
        [messages],
        [{"role": "user", "content": messages}],
        [{"role": "user", "content": [messages]}],
        [{"role": messages, "content": "x"}],
    ):
        body = orjson.dumps({"model": "m", "messages": shape})
        refusal = refusal_of(body, ChatCompletionRequest)
        assert refusal is None or (refusal.param or "").startswith("messages")


@given(value=json_values)
@settings(max_examples=300)
def test_no_valid_json_is_taken_for_one_with_a_key_twice(value: Any) -> None:
    body = orjson.dumps({"model": "m", "messages": value, "metadata": {"k": value}})
    refusal = refusal_of(body, ChatCompletionRequest)
    assert refusal is None or refusal.code not in {"invalid_json", "body_too_deep"}
