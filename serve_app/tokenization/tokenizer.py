"""The tokenizer of one prepared model: text, chats and tokens, each way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from tokenizers import AddedToken, Tokenizer

from serve_app.errors import InvalidRequest, ModelError
from serve_app.messages.tokenization import ChatEncoding, Message, TextEncoding, TokenizerInfo
from serve_app.tokenization.provenance import ControlToken, MessageMarks
from serve_app.tokenization.token_cache import TokenCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["ChatTokenizer"]

_ROLES = frozenset({"system", "user", "assistant"})


class ChatTokenizer:
    """Encodes and decodes for one model.

    A chat is encoded exactly as its template and tokenizer do it, with one difference: control
    tokens that a message spells out stay plain text (see `provenance`). The text between two
    control tokens is encoded on its own, as tokenizers do anyway, and kept for the next turn.

    Args:
        model_dir: folder of the prepared model, with tokenizer.json and tokenizer_config.json.
        info: what callers may ask about the model.
        cache_entries: encoded pieces of chats kept for reuse.

    Raises:
        ModelError: the folder's tokenizer can't be loaded.
    """

    def __init__(self, model_dir: Path, info: TokenizerInfo, *, cache_entries: int = 4096) -> None:
        # Imported late, since it takes most of a second: whoever only names the deployment, as the
        # application's builder does, makes no tokenizer.
        from transformers import PreTrainedTokenizerFast

        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(model_dir), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            msg = (
                f"The tokenizer in {model_dir} can't be loaded: {error} Remove the model with "
                f"`parley model remove {model_dir.name}`, and it is prepared anew at the next start."
            )
            raise ModelError(msg) from error
        self._info = info
        self._cache = TokenCache(cache_entries)

        control = _control_tokens(self._tokenizer, info)
        # The token for the unknown is what a text may well become.
        self._control_ids = frozenset(token_id for _, token_id in control) - {
            self._tokenizer.unk_token_id
        }
        self._marks = MessageMarks(control)

        self._raw: Tokenizer = self._tokenizer.backend_tokenizer
        self._raw.no_truncation()
        self._raw.no_padding()
        # A second one that takes control tokens for text. Its anchor, which no text can spell,
        # stands for what goes before a piece: some tokenizers treat a beginning differently.
        self._plain = Tokenizer.from_str(self._raw.to_str())
        self._plain.encode_special_tokens = True
        self._plain.add_tokens([AddedToken(self._marks.anchor, normalized=False)])

    def info(self) -> TokenizerInfo:
        """Return what callers may know about the model."""
        return self._info

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Encode raw text, in which control tokens count as such.

        Args:
            text: any text.
            add_special_tokens: put the model's own BOS or EOS around it, where it wants them.

        Raises:
            InvalidRequest: the text is not valid Unicode.
        """
        return _encode(self._raw, text, add_special_tokens=add_special_tokens)

    def encode_text(self, text: str) -> TextEncoding:
        """Encode a prompt as it is, and say how long that took; see `encode`."""
        began = time.perf_counter()
        tokens = self.encode(text)
        return TextEncoding(tokens, encode_s=time.perf_counter() - began)

    def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Return how many tokens each text has as part of a message.

        Raises:
            InvalidRequest: a text is not valid Unicode.
        """
        return tuple(len(_encode(self._plain, text, add_special_tokens=False)) for text in texts)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, control tokens spelled out.

        Raises:
            InvalidRequest: a number is no token of this model.
        """
        for token in tokens:
            if not 0 <= token < self._info.vocab_size:
                msg = f"{token} is no token: ids go from 0 to {self._info.vocab_size - 1}."
                raise InvalidRequest(msg, param="tokens")
        return str(self._raw.decode(list(tokens), skip_special_tokens=False))

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> ChatEncoding:
        """Render and encode a conversation.

        A message accounts for what stands between the end of the one before and its own end:
        what the prompt loses when it is left out.

        Args:
            messages: at least one.
            add_generation_prompt: end with what starts the assistant's reply.

        Raises:
            InvalidRequest: there is no message, a role is unknown, the model's template doesn't
                take these roles in this order, or a text is not valid Unicode.
            ModelError: the model has no chat template.
        """
        began = time.perf_counter()
        rendered = self._render(messages, add_generation_prompt=add_generation_prompt)
        tokens: list[int] = []
        costs = [0] * len(messages)
        settled = 0  # tokens that have been put to a message's account
        for piece in self._marks.read(rendered):
            if isinstance(piece, ControlToken):
                tokens.append(piece.id)
                continue
            start = len(tokens)
            tokens += self._cache.get(piece.text, first=start == 0, encode=self._encode_plain)
            for position, index in piece.ends:
                # Where a template puts no control token between messages, their shares of the
                # common piece are taken by length.
                share = position / len(piece.text) if piece.text else 0
                end = start + round((len(tokens) - start) * share)
                costs[index] += end - settled
                settled = end
        return ChatEncoding(
            tokens=tuple(tokens),
            message_tokens=tuple(costs),
            overhead=len(tokens) - settled,
            encode_s=time.perf_counter() - began,
        )

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        if not messages:
            msg = "A conversation needs at least one message."
            raise InvalidRequest(msg, param="messages")
        if self._tokenizer.chat_template is None:
            msg = (
                f"{self._info.model} has no chat template, so it can't chat: use "
                "POST /v1/completions, or prepare an instruction-tuned model."
            )
            raise ModelError(msg)
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [self._marked(message, index) for index, message in enumerate(messages)],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except jinja2.TemplateError as error:
            msg = f"{self._info.model}'s chat template refuses these messages: {error}"
            raise InvalidRequest(msg, param="messages") from error

    def _marked(self, message: Message, index: int) -> dict[str, str]:
        if message.role not in _ROLES:
            msg = f"A message's role is system, user or assistant, not {message.role[:40]!r}."
            raise InvalidRequest(msg, param="messages")
        marked = {"role": message.role, "content": self._marks.mark(message.content, index)}
        if message.name is not None:
            marked["name"] = self._marks.mark_name(message.name)
        return marked

    def _encode_plain(self, text: str, first: bool) -> tuple[int, ...]:
        if first:
            tokens = _encode(self._plain, text, add_special_tokens=False)
        else:
            anchored = f"{self._marks.anchor}{text}"
            tokens = _encode(self._plain, anchored, add_special_tokens=False)[1:]
        if not self._control_ids.isdisjoint(tokens):
            # A vocabulary that spells a control token out of plain pieces; none known does.
            msg = (
                f"A message can't be told from a control token of {self._info.model}; rephrase it."
            )
            raise InvalidRequest(msg, param="messages")
        return tokens


def _encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
    except TypeError:  # that is how the package says that a str can't be UTF-8
        msg = "The text holds a lone surrogate, which is no character; send valid Unicode."
        raise InvalidRequest(msg) from None


def _control_tokens(
    tokenizer: PreTrainedTokenizerFast, info: TokenizerInfo
) -> list[tuple[AddedToken, int]]:
    """Return the tokens that only the template may write."""
    special = set(tokenizer.all_special_tokens)
    return [
        (token, token_id)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in special or token_id in info.eos_token_ids
    ]
