from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from serve_app.errors import ModelError
from serve_app.ingress.detokenizer import Detokenizer, TokenTable
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint

TEXTS = [
    "Hello, world! It's 12:30.\n\n  Indented\ttext.",
    "今天天气怎么样？我想去公园散步。",
    "family 👨‍👩‍👧‍👦, flag 🇩🇪, thumbs 👍🏽, zalgo Z̷a̸l̶g̵o̴",
    "Ærøskøbing, naïve café, Straße, мир, שלום, สวัสดี, \u200b\ufeff\ufffd",
    "\x00\x01 control and \U0010ffff the last one",
]


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    return Tokenizer.from_str(GgufCheckpoint(bundled_model()).tokenizer().tokenizer_json)


@pytest.fixture(scope="module")
def bundled_table(bundled: Tokenizer) -> TokenTable:
    return TokenTable(bundled)


def sentencepiece(*, strip: bool = True) -> Tokenizer:
    """A vocabulary in the manner of Llama 2: bytes, then words with their leading space."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["▁", "▁Hello", "▁world", "Hello", "!", "▁▁", "你", "好", "▁a", "é", "\n"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: token for token, name in enumerate(names)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if strip else []),
        ]
    )
    return tokenizer


def stream(table: TokenTable, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(table)
    return [*(detokenizer.add(token) for token in tokens), detokenizer.flush()]


def whole(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("text", TEXTS)
def test_a_streamed_text_is_the_text(
    bundled: Tokenizer, bundled_table: TokenTable, text: str
) -> None:
    tokens = bundled.encode(text).ids
    assert "".join(stream(bundled_table, tokens)) == text == whole(bundled, tokens)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_no_piece_ends_inside_of_a_character(
    bundled: Tokenizer, bundled_table: TokenTable, text: str
) -> None:
    pieces = stream(bundled_table, bundled.encode(text).ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_with_the_token_that_completes_it(
    bundled: Tokenizer, bundled_table: TokenTable
) -> None:
    tokens = bundled.encode("🍎").ids
    assert len(tokens) > 1
    assert stream(bundled_table, tokens) == [""] * (len(tokens) - 1) + ["🍎", ""]


@settings(max_examples=300)
@given(tokens=st.lists(st.integers(0, 49151) | st.integers(0, 300), max_size=40))
def test_any_tokens_stream_to_what_decode_makes_of_them(
    bundled: Tokenizer, bundled_table: TokenTable, tokens: list[int]
) -> None:
    # Most such sequences are full of broken UTF-8, special tokens included.
    assert "".join(stream(bundled_table, tokens)) == whole(bundled, tokens)


def test_every_single_token_streams_to_what_decode_makes_of_it(
    bundled: Tokenizer, bundled_table: TokenTable
) -> None:
    for token in range(bundled.get_vocab_size()):
        assert "".join(stream(bundled_table, [token])) == whole(bundled, [token])


def test_a_long_random_walk_equals_decode(bundled: Tokenizer, bundled_table: TokenTable) -> None:
    tokens = random.Random(5).choices(range(49152), k=20_000)
    assert "".join(stream(bundled_table, tokens)) == whole(bundled, tokens)


def test_an_unfinished_character_shows_as_replacement_at_the_end(
    bundled: Tokenizer, bundled_table: TokenTable
) -> None:
    tokens = bundled.encode("ok 🍎").ids[:-1]
    assert stream(bundled_table, tokens)[-1] == "\ufffd"
    assert "".join(stream(bundled_table, tokens)) == "ok \ufffd"


def test_special_tokens_give_no_text_and_ids_without_a_token_neither(
    bundled: Tokenizer, bundled_table: TokenTable
) -> None:
    end = bundled.token_to_id("<|im_end|>")
    apple = bundled.encode("🍎").ids
    assert stream(bundled_table, [end, 10**6]) == ["", "", ""]
    assert "".join(stream(bundled_table, [apple[0], end, 10**6, *apple[1:]])) == "🍎"


def test_a_token_shows_with_its_bytes(bundled: Tokenizer, bundled_table: TokenTable) -> None:
    first, *_ = bundled.encode("🍎").ids
    assert bundled_table.show(bundled.encode(" the").ids[0]) == (" the", b" the")
    text, piece = bundled_table.show(first)
    assert text == "\ufffd"
    assert "🍎".encode().startswith(piece)
    end = bundled.token_to_id("<|im_end|>")
    assert bundled_table.show(end) == ("<|im_end|>", b"<|im_end|>")
    assert bundled_table.show(10**6) == ("", b"")


def test_added_tokens_that_are_not_special_are_text() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens(["<tool>", "«你 好»", "Ġé"])
    tokens = tokenizer.encode("a <tool> b «你 好»! Ġé 🍎").ids
    assert "".join(stream(TokenTable(tokenizer), tokens)) == whole(tokenizer, tokens)


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize(
    "names",
    [
        ["▁Hello", "▁world", "!"],
        ["<s>", "▁", "▁Hello", "</s>", "▁a"],
        ["▁▁", "Hello"],
        ["Hello", "▁world"],
        ["▁"],
        ["▁a", "<0xF0>", "<0x9F>", "<0x8D>", "<0x8E>", "你", "<0xE5>", "<0xA5>", "<0xBD>"],
        ["<0x20>", "<0x20>", "Hello"],
        ["<0x0A>", "▁a"],
        ["▁a", "<0xF0>", "<0x9F>", "▁a"],
        ["<0xFF>", "é"],
        ["你", "<0xE5>", "<0xA5>"],
    ],
)
def test_sentencepiece_streams_to_what_decode_makes_of_it(names: list[str], *, strip: bool) -> None:
    tokenizer = sentencepiece(strip=strip)
    tokens = [tokenizer.token_to_id(name) for name in names]
    assert "".join(stream(TokenTable(tokenizer), tokens)) == whole(tokenizer, tokens)


@settings(max_examples=200)
@given(text=st.text(max_size=20))
def test_sentencepiece_streams_any_text_that_is_utf8(text: str) -> None:
    tokenizer = sentencepiece()
    tokens = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    pieces = stream(TokenTable(tokenizer), tokens)
    assert "".join(pieces) == whole(tokenizer, tokens)


def test_whole_characters_of_a_broken_byte_run_are_kept() -> None:
    tokenizer = sentencepiece()
    names = ["<0xE5>", "<0xA5>", "<0xBD>", "<0xFF>", "!"]
    tokens = [tokenizer.token_to_id(name) for name in names]
    assert "".join(stream(TokenTable(tokenizer), tokens)) == "好\ufffd!"


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 1),
            ]
        ),
    ],
)
def test_a_decoder_that_is_not_known_is_refused(decoder: decoders.Decoder | None) -> None:
    tokenizer = sentencepiece()
    tokenizer.decoder = decoder
    with pytest.raises(ModelError, match="only byte-level BPE and SentencePiece"):
        TokenTable(tokenizer)
