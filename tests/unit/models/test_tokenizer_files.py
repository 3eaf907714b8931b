from __future__ import annotations

import itertools
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
from tiny_checkpoints import CHATML, Make, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from serve_app.errors import ModelError
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint
from serve_app.models.gguf_file import GgufFile
from serve_app.models.gguf_tokenizer import tokenizer_from_gguf
from serve_app.models.safetensors_checkpoint import SafetensorsCheckpoint
from serve_app.models.tokenizer_files import TokenizerFiles

DATA = Path(__file__).parents[2] / "data"

TEXTS = [
    "",
    " ",
    "Hello, world! It's 7 o'clock; they'll say WE'VE won.",
    "In 2024 there were 123,456.78 of them (½, Ⅷ, ٣٤, 二〇).",
    "你好，世界。今天天气很好，我们去公园吧！",
    "Emoji 🦙👩‍👩‍👧‍👦🇩🇪👍🏽 and accents: naïve café, Zürich, e\u0301",
    "def f(x: int) -> int:\n\treturn x ** 2  # square\n\n\n    if a != b:\r\n        pass\n",
    "  leading, trailing and   inner   spaces   ",
    "नमस्ते दुनिया — مرحبا بالعالم — שלום \u00a0\u3000\u200b",
    "<html><body class='x'>&nbsp;</body></html> {\"a\": [1, 2.5e-3]}",
    "\x00\x01\x7f\ufffd",
]

# llama.cpp's patterns for byte-level vocabularies (llama-vocab.cpp), applied one after another.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
PATTERNS = {
    "smollm": [r"\p{N}", GPT2],
    "gpt-2": [GPT2],
    "llama-bpe": [
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "qwen2": [
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
}


class ReferenceBpe:
    """Byte-level BPE in the plainest way, to compare with."""

    def __init__(self, tokens: list[str], merges: list[str], patterns: list[str]) -> None:
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.patterns = [regex.compile(pattern) for pattern in patterns]
        self.letters = bytes_to_unicode()

    def pieces(self, text: str) -> list[str]:
        pieces = [text]
        for pattern in self.patterns:
            cut: list[str] = []
            for piece in pieces:
                end = 0
                for match in pattern.finditer(piece):
                    cut += [piece[end : match.start()], match[0]]
                    end = match.end()
                cut.append(piece[end:])
            pieces = [piece for piece in cut if piece]
        return pieces

    def encode(self, text: str, *, whole_pieces: bool = False) -> list[int]:
        found: list[int] = []
        for piece in self.pieces(text):
            word = [self.letters[byte] for byte in piece.encode()]
            if whole_pieces and "".join(word) in self.ids:
                word = ["".join(word)]
            while len(word) > 1:
                pairs = list(itertools.pairwise(word))
                best = min(pairs, key=lambda pair: self.ranks.get(pair, 10**9))
                if best not in self.ranks:
                    break
                at = pairs.index(best)
                word[at : at + 2] = ["".join(best)]
            found += [self.ids[part] for part in word]
        return found


@pytest.fixture(scope="module")
def bundled() -> dict[str, Any]:
    return GgufFile(bundled_model()).metadata


@pytest.mark.parametrize("pre", list(PATTERNS))
def test_byte_level_tokens_are_those_of_llama_cpps_patterns(
    bundled: dict[str, Any], pre: str
) -> None:
    files = tokenizer_from_gguf({**bundled, "tokenizer.ggml.pre": pre}, where="test")
    tokenizer = Tokenizer.from_str(files.tokenizer_json)
    reference = ReferenceBpe(
        bundled["tokenizer.ggml.tokens"], bundled["tokenizer.ggml.merges"], PATTERNS[pre]
    )
    for raw in TEXTS:
        # Qwen's own tokenizer normalises; llama.cpp leaves that out.
        text = unicodedata.normalize("NFC", raw) if pre == "qwen2" else raw
        found = tokenizer.encode(raw, add_special_tokens=False).ids
        assert found == reference.encode(text, whole_pieces=pre == "llama-bpe"), text
        assert tokenizer.decode(found, skip_special_tokens=False) == text


def test_bundled_tokenizer_equals_transformers_own_reading(tmp_path: Path) -> None:
    path = bundled_model()
    theirs = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    GgufCheckpoint(path).tokenizer().write(tmp_path)
    mine = AutoTokenizer.from_pretrained(tmp_path)
    # transformers leaves SmolLM's splitting of digits out; it only shows in digits beyond ASCII.
    texts = [text for text in TEXTS if "½" not in text]
    for text in [*texts, (DATA / "alice_chapter_1.txt").read_text(encoding="utf-8")]:
        assert mine.encode(text) == theirs.encode(text)
    assert mine.vocab_size == theirs.vocab_size == 49152
    assert (mine.bos_token, mine.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (mine.eos_token_id, mine.pad_token_id) == (2, 2)


def test_bundled_chat_template_renders_chatml(tmp_path: Path) -> None:
    GgufCheckpoint(bundled_model()).tokenizer().write(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye."},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    tokens = tokenizer.encode(rendered, add_special_tokens=False)
    assert (tokens.count(1), tokens.count(2)) == (5, 4)


def test_bundled_stop_tokens_are_the_ends_of_turn() -> None:
    files = GgufCheckpoint(bundled_model()).tokenizer()
    assert files.eos_token_ids == (2,)
    assert files.bos_token_id == 1


def test_tokenizer_is_built_and_loaded_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from serve_app.models.bundled import bundled_model\n"
        "from serve_app.models.gguf_checkpoint import GgufCheckpoint\n"
        "files = GgufCheckpoint(bundled_model()).tokenizer()\n"
        "files.check(vocab_size=49152, where='bundled')\n"
        "files.write(Path(sys.argv[1]))\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(tokenizer.apply_chat_template([{'role': 'user', 'content': 'Hi'}])['input_ids'][:2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[1, 9690]"


def sentencepiece() -> tuple[dict[str, Any], list[tuple[str, list[int]]]]:
    """Return metadata and encodings of a BPE vocabulary that SentencePiece itself trained and ran."""
    data = json.loads((DATA / "sentencepiece_bpe.json").read_text(encoding="utf-8"))
    encodings = data.pop("encodings")
    metadata = {f"tokenizer.ggml.{key}": value for key, value in data.items()}
    return {**metadata, "tokenizer.ggml.model": "llama"}, encodings


def test_sentencepiece_tokens_are_those_of_sentencepiece() -> None:
    metadata, encodings = sentencepiece()
    tokenizer = Tokenizer.from_str(tokenizer_from_gguf(metadata, where="test").tokenizer_json)
    assert len(encodings) > 20
    for text, ids in encodings:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids) == text


def test_bos_and_eos_are_added_as_the_file_says() -> None:
    metadata, _ = sentencepiece()
    key = "tokenizer.ggml.add_{}_token"

    def encode(**adds: bool) -> list[int]:
        changed = {**metadata, **{key.format(name): value for name, value in adds.items()}}
        files = tokenizer_from_gguf(changed, where="test")
        return list(Tokenizer.from_str(files.tokenizer_json).encode("a").ids)

    (bos, eos), plain = (1, 2), encode(bos=False)
    assert encode() == [bos, *plain]
    assert encode(bos=True, eos=True) == [bos, *plain, eos]


def test_special_tokens_in_text_are_one_token_and_unused_ones_none(bundled: dict[str, Any]) -> None:
    types = list(bundled["tokenizer.ggml.token_type"])
    types[3] = 5  # <repo_name>
    files = tokenizer_from_gguf({**bundled, "tokenizer.ggml.token_type": types}, where="test")
    tokenizer = Tokenizer.from_str(files.tokenizer_json)
    assert tokenizer.encode("<|im_start|>").ids == [1]
    assert tokenizer.token_to_id("<repo_name>") is None
    assert len(tokenizer.encode("<repo_name>").ids) > 1


def test_turn_ends_of_chat_formats_stop_a_base_models_file_too(bundled: dict[str, Any]) -> None:
    changed = {**bundled, "tokenizer.ggml.eos_token_id": 0}
    assert tokenizer_from_gguf(changed, where="test").eos_token_ids == (0, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pre": "dbrx"}, "'dbrx'"),
        ({"pre": None}, "None"),
        ({"model": "t5"}, "'t5'"),
        ({"model": None}, "None"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "twice"),
        ({"token_type": [1]}, "49152 tokens with 1 types"),
        ({"merges": ["nospace"]}, "'nospace'"),
        ({"merges": ["zzzzzz qqqqqq"]}, "not in the vocabulary"),
        ({"eos_token_id": 49152}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"model": "llama"}, "scores"),
        ({"model": "llama", "scores": [0.0] * 49152}, "byte tokens"),
    ],
)
def test_what_cannot_be_rebuilt_exactly_is_refused(
    bundled: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    metadata = {**bundled, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}}
    with pytest.raises(ModelError, match=reason) as caught:
        tokenizer_from_gguf(metadata, where="some.gguf")
    assert "some.gguf" in caught.value.message


def test_folder_tokenizer_keeps_its_text_template_and_stop_tokens(
    tiny_folder: Make, tmp_path: Path
) -> None:
    folder = tiny_folder("llama")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    files = SafetensorsCheckpoint(folder).tokenizer()
    assert files.eos_token_ids == (0, 2)
    assert files.bos_token_id == 1
    assert files.tokenizer_json == (folder / "tokenizer.json").read_text(encoding="utf-8")
    files.check(vocab_size=320, where="test")
    out = tmp_path / "out"
    out.mkdir()
    files.write(out)
    loaded, original = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "rabbit hole 🦙"}]
    for tokenize in (False, True):
        assert loaded.apply_chat_template(messages, tokenize=tokenize) == (
            original.apply_chat_template(messages, tokenize=tokenize)
        )


def test_template_file_goes_before_the_one_in_the_config(tiny_folder: Make) -> None:
    folder = tiny_folder("llama")
    assert SafetensorsCheckpoint(folder).tokenizer().chat_template == CHATML
    (folder / "chat_template.jinja").write_text("from the file")
    assert SafetensorsCheckpoint(folder).tokenizer().chat_template == "from the file"


def test_the_default_of_several_templates_is_taken(tiny_folder: Make) -> None:
    folder = tiny_folder("llama")
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert SafetensorsCheckpoint(folder).tokenizer().chat_template == "d"


def test_code_that_a_tokenizer_config_names_is_not_carried_over(
    tiny_folder: Make, tmp_path: Path
) -> None:
    folder = tiny_folder("llama")
    config = {
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
        "tokenizer_class": "EvilTokenizer",
        "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    SafetensorsCheckpoint(folder).tokenizer().write(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written == {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}


def test_a_folder_without_tokenizer_json_says_how_to_get_one(tiny_folder: Make) -> None:
    folder = tiny_folder("llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="save_pretrained"):
        SafetensorsCheckpoint(folder).tokenizer()


@pytest.mark.parametrize("content", [b"{}", b"", b"\xff\xff", b"null", b'{"model": {"type": "?"}}'])
def test_a_broken_tokenizer_is_refused_with_its_path(tiny_folder: Make, content: bytes) -> None:
    folder = tiny_folder("llama")
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        SafetensorsCheckpoint(folder).tokenizer()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": 250}, "not of the same model"),
        ({"eos_token_ids": (320,)}, "not of the same model"),
        ({"bos_token_id": -1}, "not of the same model"),
        ({"eos_token_ids": ()}, "no token ends a turn"),
        ({"chat_template": "{% for %}"}, "can't render"),
        ({"chat_template": "{{ raise_exception('no users') }}"}, "no users"),
        ({"chat_template": "{{ messages.nothing.more }}"}, "can't render"),
        ({"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}, "can't render"),
        ({"tokenizer_json": "{"}, "can't be loaded"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any], reason: str) -> None:
    vocab_size = changes.pop("vocab_size", 320)
    fields = {
        "tokenizer_json": tiny_tokenizer().to_str(),
        "chat_template": CHATML,
        "eos_token_ids": (2,),
        "bos_token_id": 1,
    }
    with pytest.raises(ModelError, match=reason):
        TokenizerFiles(**{**fields, **changes}).check(vocab_size=vocab_size, where="test")
