"""The tokenizer inside a GGUF file's metadata, rebuilt for the `tokenizers` package.

Two kinds are rebuilt exactly: byte-level BPE ("gpt2"), whose way of splitting text is named by
`tokenizer.ggml.pre`, and SentencePiece BPE with byte fallback ("llama"). A kind that can't be
rebuilt exactly is refused: a model that reads wrong tokens answers, and answers badly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from serve_app.errors import ModelError
from serve_app.models.tokenizer_files import TokenizerFiles

__all__ = ["tokenizer_from_gguf"]

_PREFIX = "tokenizer.ggml."
_SPACE = "▁"  # what SentencePiece writes for a space


class _TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, as llama.cpp numbers it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class _Split:
    """How a byte-level tokenizer cuts text before its merges.

    Attributes:
        pattern: regular expression whose matches are the pieces, or None for GPT-2's own.
        digits: cut every digit off first.
        nfc: normalise to NFC first.
        ignore_merges: a piece that is a token is taken whole, whatever the merges say.
        adds_bos: a text starts with BOS unless the file says otherwise.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


# The words of Llama 3's and Qwen 2's patterns, which differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = _Split()
_LLAMA3 = _Split(_WORDS.format(digits=r"\p{N}{1,3}"), ignore_merges=True, adds_bos=True)
_QWEN2 = _Split(_WORDS.format(digits=r"\p{N}"), nfc=True)
_SPLITS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "gpt2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": _Split(digits=True),
}

# Tokens that end a turn in the chat formats of the supported families. Files of base models name
# only the end of a text, and chat templates end turns with these.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>")


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, where: str) -> TokenizerFiles:
    """Rebuild the tokenizer and take the chat template and stop tokens over.

    Args:
        metadata: the file's keys and values.
        where: the file's name for the error.

    Raises:
        ModelError: the metadata is incomplete, or the tokenizer is of a kind that can't be
            rebuilt exactly.
    """
    return _Metadata(metadata, where).tokenizer_files()


class _Metadata:
    """The tokenizer's part of the metadata, checked as it is read."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata = metadata
        self._where = where
        self.tokens: list[str] = self._list("tokens", str)
        if len(set(self.tokens)) != len(self.tokens):
            msg = f"{where}: the vocabulary holds a token twice."
            raise ModelError(msg)
        self.types = self._list("token_type", int)
        if len(self.types) != len(self.tokens):
            msg = f"{where}: {len(self.tokens)} tokens with {len(self.types)} types."
            raise ModelError(msg)

    def tokenizer_files(self) -> TokenizerFiles:
        kind = self._metadata.get(_PREFIX + "model")
        if kind == "gpt2":
            tokenizer, adds_bos = self._byte_level()
        elif kind == "llama":
            tokenizer, adds_bos = self._sentencepiece()
        else:
            msg = (
                f"{self._where}: a tokenizer of kind {kind!r} can't be rebuilt exactly; use the "
                "model's safetensors folder, which has its tokenizer.json."
            )
            raise ModelError(msg)
        self._add_special_tokens(tokenizer)
        bos, eos = self._id("bos_token_id"), self._id("eos_token_id")
        adds_bos = bool(self._metadata.get(_PREFIX + "add_bos_token", adds_bos))
        adds_eos = bool(self._metadata.get(_PREFIX + "add_eos_token", False))
        self._add_template(tokenizer, bos if adds_bos else None, eos if adds_eos else None)
        named = {
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": self._id("padding_token_id"),
            "unk_token": self._id("unknown_token_id"),
        }
        template = self._metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            msg = f"{self._where}: tokenizer.chat_template must be text."
            raise ModelError(msg)
        return TokenizerFiles(
            tokenizer_json=tokenizer.to_str(),
            chat_template=template,
            eos_token_ids=self._turn_ends(eos),
            bos_token_id=bos,
            config={
                **{name: self.tokens[token] for name, token in named.items() if token is not None},
                "clean_up_tokenization_spaces": False,
            },
        )

    def _vocabulary(self) -> dict[str, int]:
        # Unused entries only pad the embedding; no text may ever turn into them.
        return {
            token: number
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind != _TokenType.UNUSED
        }

    def _byte_level(self) -> tuple[Tokenizer, bool]:
        """Byte-level BPE as GPT-2 made it; returns it and whether a text starts with BOS."""
        name = self._metadata.get(_PREFIX + "pre")
        split = _SPLITS.get(name) if isinstance(name, str) else None
        if split is None:
            msg = (
                f"{self._where}: text splitting of kind {name!r} (tokenizer.ggml.pre) is not known "
                f"here, only {', '.join(_SPLITS)}; use the model's safetensors folder."
            )
            raise ModelError(msg)
        vocabulary = self._vocabulary()
        tokenizer = Tokenizer(
            self._bpe(
                vocab=vocabulary,
                merges=[self._merge(line, vocabulary) for line in self._list("merges", str)],
                ignore_merges=split.ignore_merges,
            )
        )
        if split.nfc:
            tokenizer.normalizer = normalizers.NFC()
        steps: list[pre_tokenizers.PreTokenizer] = []
        if split.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if split.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
        steps.append(
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None)
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, split.adds_bos

    def _merge(self, line: str, vocabulary: Mapping[str, int]) -> tuple[str, str]:
        left, space, right = line.partition(" ")
        if not space or not {left, right, left + right} <= vocabulary.keys():
            msg = f"{self._where}: the merge {line!r} joins tokens that are not in the vocabulary."
            raise ModelError(msg)
        return left, right

    def _sentencepiece(self) -> tuple[Tokenizer, bool]:
        """SentencePiece BPE with byte fallback; returns it and whether a text starts with BOS.

        SentencePiece joins the neighbours whose union scores best; merges ranked by the score of
        what they yield do the same. Source: transformers' convert_slow_tokenizer.LlamaConverter.
        """
        scores = self._list("scores", float)
        if len(scores) != len(self.tokens):
            msg = f"{self._where}: {len(self.tokens)} tokens with {len(scores)} scores."
            raise ModelError(msg)
        missing = [b for b in range(256) if f"<0x{b:02X}>" not in self.tokens]
        unknown = self._id("unknown_token_id")
        if missing or unknown is None:
            msg = (
                f"{self._where}: a SentencePiece vocabulary without byte tokens or without an "
                "unknown token can't be rebuilt exactly; use the model's safetensors folder."
            )
            raise ModelError(msg)
        tokenizer = Tokenizer(
            self._bpe(
                vocab=self._vocabulary(),
                merges=self._scored_merges(scores),
                unk_token=self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefixed = bool(self._metadata.get(_PREFIX + "add_space_prefix", True))
        prefix = [normalizers.Prepend(_SPACE)] if prefixed else []
        tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
        strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return tokenizer, True

    def _scored_merges(self, scores: Sequence[float]) -> list[tuple[str, str]]:
        # Only ordinary pieces are joined, and only from ordinary pieces.
        pieces = {
            token: number
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind == _TokenType.NORMAL
        }
        ranked = []
        for piece, number in pieces.items():
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in pieces and right in pieces:
                    rank = (-scores[number], -len(left), -len(right), number)
                    ranked.append((rank, left, right))
        ranked.sort()
        return [(left, right) for _, left, right in ranked]

    def _bpe(self, **options: Any) -> models.BPE:
        try:
            return models.BPE(**options)
        except Exception as error:  # `tokenizers` raises bare Exception
            msg = f"{self._where}: the vocabulary and its merges don't fit together: {error}."
            raise ModelError(msg) from error

    def _add_special_tokens(self, tokenizer: Tokenizer) -> None:
        special, own = [], []
        for token, kind in zip(self.tokens, self.types, strict=True):
            if kind in (_TokenType.CONTROL, _TokenType.UNKNOWN):
                special.append(AddedToken(token, special=True, normalized=False))
            elif kind == _TokenType.USER_DEFINED:
                own.append(AddedToken(token, special=False, normalized=False))
        tokenizer.add_special_tokens(special)
        tokenizer.add_tokens(own)

    def _add_template(self, tokenizer: Tokenizer, bos: int | None, eos: int | None) -> None:
        before, after = ([] if i is None else [self.tokens[i]] for i in (bos, eos))
        if not before and not after:
            return

        def line(sequence: str) -> list[str]:
            return [*before, sequence, *after]

        tokenizer.post_processor = processors.TemplateProcessing(
            single=line("$A"),
            pair=[*line("$A:0"), *(f"{part}:1" for part in line("$B"))],
            special_tokens=[(self.tokens[i], i) for i in (bos, eos) if i is not None],
        )

    def _turn_ends(self, eos: int | None) -> tuple[int, ...]:
        named = [eos, self._id("eot_token_id"), self._id("eom_token_id")]
        known = [
            self.tokens.index(token)
            for token in _TURN_ENDS
            if token in self.tokens and self.types[self.tokens.index(token)] == _TokenType.CONTROL
        ]
        return tuple(dict.fromkeys(i for i in [*named, *known] if i is not None))

    def _id(self, key: str) -> int | None:
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            msg = f"{self._where}: {_PREFIX}{key} is {value!r}, which is no token."
            raise ModelError(msg)
        return value

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._metadata.get(_PREFIX + key)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            msg = f"{self._where}: {_PREFIX}{key} is missing or not a list of {kind.__name__}."
            raise ModelError(msg)
        return value
