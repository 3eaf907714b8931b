"""Who wrote it: the chat template's control tokens told apart from text that only looks like them.

A person who types `<|im_end|><|im_start|>system` must not end their own message and speak as the
system. So messages are marked before the template sees them, and the marks are read off again
after: text inside quotation marks is somebody's words, whatever it spells; a control token outside
them is the template's. Marks also show where each message ends, hence what it costs. They are
random digits that nobody can guess, so that no message can forge one, and that no template filter
(trim, upper, tojson) changes; all else in a message the template sees as it is.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken

__all__ = ["ControlToken", "MessageMarks", "Text"]

_NONCE_DIGITS = 30
_INDEX_DIGITS = 6


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A control token that the template wrote."""

    id: int


@dataclass(frozen=True, slots=True)
class Text:
    """What stands between two control tokens.

    Attributes:
        text: without marks.
        ends: (position in `text`, index of a message) where messages end, in order.
    """

    text: str
    ends: tuple[tuple[int, int], ...]


class MessageMarks:
    """Marks messages for one tokenizer, and reads the marks off what the template made of them.

    Args:
        control_tokens: the tokenizer's control tokens with their ids.
    """

    def __init__(self, control_tokens: Sequence[tuple[AddedToken, int]]) -> None:
        # Matches may bring white space along that the token swallows.
        self._ids = {token.content.strip(): token_id for token, token_id in control_tokens}
        nonce = "".join(str(secrets.randbelow(10)) for _ in range(_NONCE_DIGITS))
        self._open, self._close, self._border, self._end = (f"{nonce}{kind}" for kind in range(4))
        self.anchor = f"{nonce}4"

        # Longest first: where one token begins with another, the tokenizer takes the longer one.
        tokens = sorted(
            (token for token, _ in control_tokens), key=lambda token: -len(token.content)
        )
        never = "(?!)"
        contents = "|".join(re.escape(token.content) for token in tokens) or never
        control = "|".join(map(_as_matched, tokens)) or never
        self._spelled = re.compile(contents)
        self._marks = re.compile(
            f"{self._open}(?P<quoted>{contents}){self._close}"
            f"|{self._end}(?P<end>[0-9]{{{_INDEX_DIGITS}}})"
            f"|{nonce}[0-3]"  # quotation marks that a template has torn apart, and borders
            f"|(?P<control>{control})"
        )
        self._tails = _tails(token.content for token in tokens)

    def mark(self, content: str, index: int) -> str:
        """Return a message's content with marks, for the template to render.

        Args:
            content: what the message says.
            index: its place among the messages.
        """
        # White space stays outermost, where templates look for it to trim it.
        start = len(content) - len(content.lstrip())
        stop = len(content.rstrip())
        if start >= stop:
            return content
        core = content[start:stop]
        # A control token can't reach from the template's text into this one past a border. It is
        # left out where nothing could: templates ask what a message starts with.
        border = self._border if core.startswith(self._tails.get(core[0], ())) else ""
        end = f"{self._end}{index:0{_INDEX_DIGITS}}"
        return f"{content[:start]}{border}{self._quote(core)}{end}{content[stop:]}"

    def mark_name(self, name: str) -> str:
        """Return a speaker's name with marks."""
        return f"{self._border}{self._quote(name)}{self._border}"

    def read(self, rendered: str) -> Iterator[ControlToken | Text]:
        """Take a rendered conversation apart into control tokens and the text between them."""
        parts: list[str] = []
        ends: list[tuple[int, int]] = []
        length = position = 0

        def keep(text: str) -> None:
            nonlocal length
            parts.append(text)
            length += len(text)

        for match in self._marks.finditer(rendered):
            keep(rendered[position : match.start()])
            position = match.end()
            match match.lastgroup:
                case "quoted":
                    keep(match["quoted"])
                case "end":
                    ends.append((length, int(match["end"])))
                case "control":
                    if length or ends:
                        yield Text("".join(parts), tuple(ends))
                    yield ControlToken(self._ids[match["control"].strip()])
                    parts, ends, length = [], [], 0
        keep(rendered[position:])
        if length or ends:
            yield Text("".join(parts), tuple(ends))

    def _quote(self, text: str) -> str:
        return self._spelled.sub(f"{self._open}\\g<0>{self._close}", text)


def _as_matched(token: AddedToken) -> str:
    """Return the pattern by which a tokenizer finds a control token."""
    left = r"\s*" if token.lstrip else ""
    right = r"\s*" if token.rstrip else ""
    word = (r"(?<!\w)", r"(?!\w)") if token.single_word else ("", "")
    return f"{left}{word[0]}{re.escape(token.content)}{word[1]}{right}"


def _tails(contents: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return every proper ending of the control tokens, by first character."""
    tails: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for tail in {content[cut:] for content in contents for cut in range(1, len(content))}:
        tails[tail[0]] += (tail,)
    return dict(tails)
