"""Tokens to text, one token at a time, without breaking a character.

A token is looked at as the bytes that it stands for, and a stream as one UTF-8 text cut at
arbitrary places. That costs the same for the first token and the ten-thousandth, and one list
look-up for nearly all of them.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

from serve_app.errors import ModelError

__all__ = ["Detokenizer", "TokenTable"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class TokenTable:
    """What each token of one tokenizer stands for; built once, shared by all streams.

    Known are the decoders of the model families that are served: byte-level BPE (GPT-2, Llama 3,
    Qwen, SmolLM), and SentencePiece with byte fallback (Llama 2, Mistral).

    Args:
        tokenizer: as loaded from tokenizer.json.

    Attributes:
        texts: a token's text where it is whole characters, else None; special tokens have "".
        pieces: a token's bytes in the running text; special tokens have none.
        leading_spaces: most spaces that the start of a text loses (SentencePiece puts one there).
        errors: name of the codec error handler for bytes that are not UTF-8.

    Raises:
        ModelError: the tokenizer's decoder is of another kind.
    """

    __slots__ = ("_special", "errors", "leading_spaces", "pieces", "texts")

    def __init__(self, tokenizer: Tokenizer) -> None:
        to_bytes, self.leading_spaces, self.errors = _read_decoder(tokenizer)
        self._special: dict[int, str] = {
            token: added.content
            for token, added in tokenizer.get_added_tokens_decoder().items()
            if added.special
        }
        size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.pieces: list[bytes] = []
        self.texts: list[str | None] = []
        for token in range(size):
            name = None if token in self._special else tokenizer.id_to_token(token)
            piece = b"" if name is None else to_bytes(name)
            self.pieces.append(piece)
            self.texts.append(_whole_text(piece))

    def piece(self, token: int) -> bytes:
        """Return a token's bytes in the running text.

        Ids behind the last token have none: models round their output up, and may in theory
        choose one.
        """
        return self.pieces[token] if token < len(self.pieces) else b""

    def show(self, token: int) -> tuple[str, bytes]:
        """Return a token's text and bytes as it is shown on its own.

        Special tokens show by their name, bytes that are no character as U+FFFD.
        """
        if name := self._special.get(token):
            return name, name.encode()
        piece = self.piece(token)
        return piece.decode(errors=self.errors), piece


class Detokenizer:
    """One stream's way from tokens to text.

    All that `add` and `flush` return, put together, is what `Tokenizer.decode` makes of all tokens
    without the special ones. (One exception: a run of byte-fallback tokens that is not UTF-8 as a
    whole keeps its whole characters here, while `decode` replaces them too. It can, since it looks
    ahead to the end of the run.)
    """

    __slots__ = ("_decoder", "_pending", "_spaces", "_table", "_texts")

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._texts = table.texts
        self._decoder = codecs.getincrementaldecoder("utf-8")(table.errors)
        self._spaces = table.leading_spaces
        # True while the next token can't be looked at on its own.
        self._pending = self._spaces > 0

    def add(self, token: int) -> str:
        """Return the text that the token completes; "" while its last character is not whole."""
        if not self._pending and token < len(self._texts):
            text = self._texts[token]
            if text is not None:
                return text
        text = self._strip(self._decoder.decode(self._table.piece(token)))
        self._pending = self._spaces > 0 or self._decoder.getstate()[0] != b""
        return text

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for a character that never became whole."""
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        while self._spaces and text:
            if text[0] != " ":
                self._spaces = 0
                break
            text = text[1:]
            self._spaces -= 1
        return text


def _whole_text(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _read_decoder(tokenizer: Tokenizer) -> tuple[Callable[[str], bytes], int, str]:
    """Return how a token's name becomes bytes, how many leading spaces go, and the error handler."""
    decoder = tokenizer.decoder
    # The package shows a decoder's parts only in its pickled state, which is JSON.
    spec: dict[str, Any] = {"type": None}
    if decoder is not None:
        spec = json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level, 0, "replace"
    match steps:
        case [
            {"type": "Replace", "pattern": {"String": old}, "content": new},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *rest,
        ]:
            match rest:
                case []:
                    return _byte_fallback(old, new), 0, _EACH_BYTE
                case [{"type": "Strip", "content": " ", "start": start, "stop": 0}]:
                    return _byte_fallback(old, new), start, _EACH_BYTE
    msg = (
        f"The tokenizer decodes by {' + '.join(map(str, kinds))}; only byte-level BPE and "
        "SentencePiece with byte fallback can be streamed."
    )
    raise ModelError(msg)


def _byte_level(name: str) -> bytes:
    # Names that use a character outside of the alphabet stand for themselves (added tokens).
    try:
        return bytes(_BYTE_OF[character] for character in name)
    except KeyError:
        return name.encode()


def _byte_fallback(old: str, new: str) -> Callable[[str], bytes]:
    def to_bytes(name: str) -> bytes:
        if found := _BYTE_TOKEN.match(name):
            return bytes.fromhex(found[1])
        return name.replace(old, new).encode()

    return to_bytes


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: a printable character for each byte.

    Printable Latin-1 stands for itself, the other bytes are 256 and up in their order. Source:
    Radford et al. 2019, `bytes_to_unicode`.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


_BYTE_OF = _byte_alphabet()

# SentencePiece's decoder shows one U+FFFD per byte where Python shows one per broken character.
_EACH_BYTE = "parley.replace-each-byte"
codecs.register_error(_EACH_BYTE, _replace_each_byte)
