"""Labelled sentences: what `load.understanding` measures with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import yaml

from serve_app.dialogue.nlu.understanding import Entity, EntityKind, Span

__all__ = [
    "PARTS",
    "LabelledEntities",
    "LabelledSentiment",
    "Part",
    "entities",
    "languages",
    "marked",
    "out_of_scope",
    "sentiments",
]

Part: TypeAlias = Literal["training", "held_out"]
PARTS: Final[tuple[Part, ...]] = ("training", "held_out")

_FOLDER = Path(__file__).parent / "text" / "understanding"
_MARK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<kind>\w+)=(?P<value>[^)]+)\)")


@dataclass(frozen=True, slots=True)
class LabelledSentiment:
    """A turn with its language, sentiment and emotion."""

    language: str
    sentiment: str
    emotion: str
    text: str


@dataclass(frozen=True, slots=True)
class LabelledEntities:
    """A turn with its entities.

    Attributes:
        region: country of the persona that would get it.
        text: without the marks.
        entities: in order.
        today: what relative dates count from.
    """

    region: str
    text: str
    entities: tuple[Entity, ...]
    today: date


def sentiments() -> dict[Part, list[LabelledSentiment]]:
    """Return the turns labelled with sentiments, by part."""
    read = _read("sentiment")
    return {part: [LabelledSentiment(*row) for row in read[part]] for part in PARTS}


def languages() -> dict[str, list[str]]:
    """Return turns by language."""
    return cast("dict[str, list[str]]", _read("languages"))


def out_of_scope() -> dict[Part, list[str]]:
    """Return turns that are no intent, by part."""
    return cast("dict[Part, list[str]]", _read("out_of_scope"))


def entities() -> dict[Part, list[LabelledEntities]]:
    """Return the turns labelled with entities, by part."""
    read = _read("entities")
    return {
        part: [
            LabelledEntities(region, *marked(text), today=read["today"])
            for region, text in read[part]
        ]
        for part in PARTS
    }


def marked(text: str) -> tuple[str, tuple[Entity, ...]]:
    """Take `[text](kind=value)` out of a sentence; return the plain sentence and the entities."""
    plain, behind, found = "", 0, []
    for match in _MARK.finditer(text):
        plain += text[behind : match.start()]
        span = Span(len(plain), len(plain) + len(match["text"]))
        kind = cast("EntityKind", match["kind"])
        found.append(Entity(kind, match["text"], match["value"], 1.0, span))
        plain += match["text"]
        behind = match.end()
    return plain + text[behind:], tuple(found)


def _read(name: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text("utf-8"))
    return content
