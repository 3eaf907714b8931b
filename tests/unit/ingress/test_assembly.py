from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serve_app.ingress.assembly import Delta, StreamAssembly
from serve_app.ingress.detokenizer import TokenTable
from serve_app.ingress.stop_strings import StopStrings
from serve_app.messages.generation import TokenLogprobs
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(GgufCheckpoint(bundled_model()).tokenizer().tokenizer_json)


@pytest.fixture(scope="module")
def table(tokenizer: Tokenizer) -> TokenTable:
    return TokenTable(tokenizer)


def numbered(place: int) -> TokenLogprobs:
    """Log probabilities that tell which token they came with."""
    return TokenLogprobs(chosen=-float(place))


def assemble(assembly: StreamAssembly, tokens: list[int], *, logprobs: bool = False) -> list[Delta]:
    deltas = [
        assembly.feed(token, numbered(place) if logprobs else None)
        for place, token in enumerate(tokens)
    ]
    return [delta for delta in (*deltas, assembly.finish()) if delta is not None]


def places(delta: Delta) -> list[int]:
    """Which tokens' log probabilities a delta carries."""
    assert delta.logprobs is not None
    return [int(-entry.logprob) for entry in delta.logprobs]


def test_every_token_that_yields_text_has_its_own_delta(
    tokenizer: Tokenizer, table: TokenTable
) -> None:
    tokens = tokenizer.encode("The sea is wide, and I can't cross over.").ids
    deltas = assemble(StreamAssembly(table), tokens)
    assert [delta.text for delta in deltas] == [table.show(token)[0] for token in tokens]
    assert all(delta.logprobs is None for delta in deltas)


def test_a_split_character_is_one_delta_with_the_logprobs_of_all_its_tokens(
    tokenizer: Tokenizer, table: TokenTable
) -> None:
    apple = tokenizer.encode("🍎").ids
    tokens = [*tokenizer.encode("an").ids, *apple, *tokenizer.encode("!").ids]
    deltas = assemble(StreamAssembly(table, logprobs=True), tokens, logprobs=True)
    assert [delta.text for delta in deltas] == ["an", "🍎", "!"]
    assert [places(delta) for delta in deltas] == [
        [0],
        [*range(1, 1 + len(apple))],
        [len(tokens) - 1],
    ]
    entries = deltas[1].logprobs
    assert entries is not None
    assert b"".join(entry.bytes for entry in entries) == "🍎".encode()


def test_a_stop_string_ends_the_reply_in_front_of_it(
    tokenizer: Tokenizer, table: TokenTable
) -> None:
    tokens = tokenizer.encode("One two three four five").ids
    assert len(tokens) == 5
    assembly = StreamAssembly(table, StopStrings(["three four"]), logprobs=True)
    deltas = assemble(assembly, tokens, logprobs=True)
    assert assembly.stopped_by == "three four"
    assert assembly.tokens == 4
    # The third token's leading space is text of the reply, the fourth token is not.
    assert [(delta.text, places(delta)) for delta in deltas] == [
        ("One", [0]),
        (" two", [1]),
        (" ", [2]),
    ]


def test_a_reply_says_at_once_that_a_stop_string_is_complete(
    tokenizer: Tokenizer, table: TokenTable
) -> None:
    assembly = StreamAssembly(table, StopStrings(["two"]))
    seen = []
    for token in tokenizer.encode("One two three").ids:
        assembly.feed(token)
        seen.append(assembly.stopped_by)
    assert seen == [None, "two", "two"]


def test_text_held_for_a_stop_string_brings_its_logprobs_later(
    tokenizer: Tokenizer, table: TokenTable
) -> None:
    tokens = tokenizer.encode("One two three").ids
    deltas = assemble(
        StreamAssembly(table, StopStrings([" two four"]), logprobs=True), tokens, logprobs=True
    )
    assert [(delta.text, places(delta)) for delta in deltas] == [
        ("One", [0]),
        (" two three", [1, 2]),
    ]


def test_logprobs_never_run_ahead_of_their_text(tokenizer: Tokenizer, table: TokenTable) -> None:
    tokens = tokenizer.encode("One two three").ids
    stops = StopStrings([" two four", " three x"])
    deltas = assemble(StreamAssembly(table, stops, logprobs=True), tokens, logprobs=True)
    assert [(delta.text, places(delta)) for delta in deltas] == [
        ("One", [0]),
        (" two", [1]),
        (" three", [2]),
    ]


def test_text_held_to_the_end_comes_with_the_last_delta(
    tokenizer: Tokenizer, table: TokenTable
) -> None:
    tokens = tokenizer.encode("One two").ids
    assembly = StreamAssembly(table, StopStrings(["two three"]), logprobs=True)
    deltas = assemble(assembly, tokens, logprobs=True)
    assert [(delta.text, places(delta)) for delta in deltas] == [
        ("One", [0]),
        (" ", [1]),
        ("two", []),
    ]
    assert assembly.stopped_by is None


def test_a_stop_string_can_be_complete_in_the_last_delta(
    tokenizer: Tokenizer, table: TokenTable
) -> None:
    tokens = tokenizer.encode("a🍎").ids[:-1]
    assembly = StreamAssembly(table, StopStrings(["\ufffd"]))
    assert [delta.text for delta in assemble(assembly, tokens)] == ["a"]
    assert assembly.stopped_by == "\ufffd"


def test_tokens_without_text_keep_their_logprobs(tokenizer: Tokenizer, table: TokenTable) -> None:
    end = tokenizer.token_to_id("<|im_end|>")
    tokens = [end, *tokenizer.encode("Hi").ids, end]
    deltas = assemble(StreamAssembly(table, logprobs=True), tokens, logprobs=True)
    assert [(delta.text, places(delta)) for delta in deltas] == [("Hi", [0, 1]), ("", [2])]
    assert deltas[1].logprobs is not None
    assert deltas[1].logprobs[0].token == "<|im_end|>"


def test_alternatives_carry_text_and_bytes(tokenizer: Tokenizer, table: TokenTable) -> None:
    the, end = tokenizer.encode(" the").ids[0], tokenizer.token_to_id("<|im_end|>")
    delta = StreamAssembly(table, logprobs=True).feed(
        the, TokenLogprobs(-0.5, ((the, -0.5), (end, -math.inf)))
    )
    assert delta is not None
    assert delta.logprobs is not None
    (entry,) = delta.logprobs
    assert (entry.token, entry.bytes, entry.logprob) == (" the", b" the", -0.5)
    assert [(other.token, other.bytes, other.logprob) for other in entry.top] == [
        (" the", b" the", -0.5),
        ("<|im_end|>", b"<|im_end|>", -math.inf),
    ]


def test_missing_logprobs_are_an_error_and_not_a_gap(table: TokenTable) -> None:
    with pytest.raises(ValueError, match="without the log probabilities"):
        StreamAssembly(table, logprobs=True).feed(1)


@settings(max_examples=200)
@given(
    tokens=st.lists(st.integers(0, 300), max_size=30),
    stops=st.lists(st.text("aeE \ufffd", min_size=1, max_size=3), max_size=3),
)
def test_deltas_add_up_to_the_text_and_name_each_of_its_tokens_once(
    tokenizer: Tokenizer, table: TokenTable, tokens: list[int], stops: list[str]
) -> None:
    assembly = StreamAssembly(table, StopStrings(stops) if stops else None, logprobs=True)
    deltas = assemble(assembly, tokens, logprobs=True)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    shown = "".join(delta.text for delta in deltas)
    carried = [place for delta in deltas for place in places(delta)]
    assert all(delta.text for delta in deltas[:-1])
    assert carried == list(range(len(carried)))
    assert not any(stop in shown for stop in stops)
    if assembly.stopped_by is None:
        assert shown == text
        assert len(carried) == assembly.tokens == len(tokens)
    else:
        assert text.startswith(shown + assembly.stopped_by)
        assert len(carried) <= assembly.tokens <= len(tokens)
