"""The tokenizer of a prepared model: tokenizer.json, tokenizer_config.json, chat template, stop tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serve_app.errors import ModelError
from serve_app.models.json_files import read_json_object

__all__ = ["TOKENIZER_CONFIG_FILE", "TOKENIZER_FILE", "TokenizerFiles", "read_tokenizer"]

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_GENERATION_FILE = "generation_config.json"

# What is taken over from somebody's tokenizer_config.json. Class names and `auto_map` are not:
# they choose code, and everything they would build is in tokenizer.json already.
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_OPTIONS = ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer that `transformers` loads without torch once `write` has put it into a folder.

    Attributes:
        tokenizer_json: content of tokenizer.json, for the `tokenizers` package.
        chat_template: Jinja template that renders messages to a prompt, or None.
        eos_token_ids: tokens that end a turn; at least one.
        bos_token_id: token that starts a text, or None.
        config: further keys of tokenizer_config.json: special tokens as text, and options.
    """

    tokenizer_json: str
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    config: Mapping[str, Any] = field(default_factory=dict)

    def check(self, *, vocab_size: int, where: str) -> None:
        """Prove that the parts load and fit the model.

        Args:
            vocab_size: rows of the model's embedding.
            where: the source's name for the error.

        Raises:
            ModelError: the tokenizer or the template can't be used, a token has no row in the
                embedding, or no token ends a turn.
        """
        vocabulary = _load(self.tokenizer_json, where=where).get_vocab(with_added_tokens=True)
        if not self.eos_token_ids:
            msg = f"{where}: no token ends a turn; name one as eos_token_id in {_GENERATION_FILE}."
            raise ModelError(msg)
        ids = [*vocabulary.values(), *self.eos_token_ids]
        if self.bos_token_id is not None:
            ids.append(self.bos_token_id)
        if max(ids) >= vocab_size or min(ids) < 0:
            msg = (
                f"{where}: the tokenizer uses tokens {min(ids)} to {max(ids)}, the weights know "
                f"0 to {vocab_size - 1}; tokenizer and weights are not of the same model."
            )
            raise ModelError(msg)
        if self.chat_template is not None:
            self._check_template(self.chat_template, where=where)

    def _check_template(self, template: str, *, where: str) -> None:
        # Imported here: transformers takes more than a second, and only `check` needs it.
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        tokens = {name: self.config.get(name) or "" for name in _SPECIAL_TOKENS}
        try:
            render_jinja_template(
                conversations=[[{"role": "user", "content": "Hello"}]],
                chat_template=template,
                add_generation_prompt=True,
                **tokens,
            )
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            msg = f"{where}: the chat template can't render a user message: {error}."
            raise ModelError(msg) from error

    def write(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into a folder that exists."""
        config = {**self.config, "tokenizer_class": "PreTrainedTokenizerFast"}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (directory / TOKENIZER_FILE).write_text(self.tokenizer_json, encoding="utf-8")
        (directory / TOKENIZER_CONFIG_FILE).write_text(
            json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )


def read_tokenizer(directory: Path, model_config: Mapping[str, Any]) -> TokenizerFiles:
    """Read the tokenizer of a Hugging Face folder.

    Args:
        directory: holds tokenizer.json and, if it likes, tokenizer_config.json,
            generation_config.json and chat_template.jinja.
        model_config: the folder's config.json, which may name stop tokens too.

    Raises:
        ModelError: a file is missing or broken.
    """
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        msg = (
            f"{directory} has no {TOKENIZER_FILE}; load the tokenizer once with transformers' "
            "AutoTokenizer and save it into the folder with save_pretrained."
        )
        raise ModelError(msg)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text ({error.reason} at byte {error.start})."
        raise ModelError(msg) from error
    tokenizer = _load(text, where=str(path))
    raw = _optional_json(directory / TOKENIZER_CONFIG_FILE)
    generation = _optional_json(directory / _GENERATION_FILE)
    config: dict[str, Any] = {
        name: raw[name] for name in _OPTIONS if isinstance(raw.get(name), bool)
    }
    for name in _SPECIAL_TOKENS:
        if token := _token_text(raw.get(name)):
            config[name] = token

    def id_of(name: str) -> list[int]:
        found = tokenizer.token_to_id(config[name]) if name in config else None
        return [] if found is None else [found]

    eos = [
        *_ids(generation, "eos_token_id", directory / _GENERATION_FILE),
        *_ids(model_config, "eos_token_id", directory / "config.json"),
        *id_of("eos_token"),
    ]
    bos = [*_ids(model_config, "bos_token_id", directory / "config.json"), *id_of("bos_token")]
    return TokenizerFiles(
        tokenizer_json=text,
        chat_template=_chat_template(directory, raw),
        eos_token_ids=tuple(dict.fromkeys(eos)),
        bos_token_id=bos[-1] if bos else None,
        config=config,
    )


def _load(text: str, *, where: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # `tokenizers` raises bare Exception
        msg = f"{where}: the tokenizer can't be loaded: {error}."
        raise ModelError(msg) from error


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _token_text(value: object) -> str | None:
    """Take a special token as text, whether it was saved as text or as an AddedToken's fields."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _ids(config: Mapping[str, Any], key: str, path: Path) -> list[int]:
    value = config.get(key)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
        msg = f"{path}: {key} must be a token id or a list of them, not {value!r}."
        raise ModelError(msg)
    return values


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / _TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            msg = f"{path} is not UTF-8 text ({error.reason} at byte {error.start})."
            raise ModelError(msg) from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones; the one called "default" is for chats
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is None or isinstance(template, str):
        return template
    msg = f"{directory / TOKENIZER_CONFIG_FILE}: chat_template must be text."
    raise ModelError(msg)
