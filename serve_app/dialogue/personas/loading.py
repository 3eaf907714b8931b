"""Reads a persona file: strictly, and with the line of everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from serve_app.dialogue.nlu.language_codes import LANGUAGE_CODES
from serve_app.dialogue.personas.schema import Persona, placeholders
from serve_app.yaml_lines import Fault, KeyPath, as_sentence, read_yaml, unknown_key

__all__ = ["PersonaFile", "read_persona"]

_MOST_EXAMPLES = 2000


@dataclass(frozen=True, slots=True)
class PersonaFile:
    """A persona and where it comes from.

    Attributes:
        file: where it was read.
        digest: hash of the file's content, in hex.
        persona: what it says.
    """

    file: Path
    digest: str
    persona: Persona


def read_persona(file: Path) -> PersonaFile:
    """Read and check a persona file.

    Raises:
        ConfigError: naming file, line and key of everything that is wrong.
    """
    source = read_yaml(file)
    faults = list(source.repeated)
    persona = None
    try:
        persona = Persona.model_validate(source.data)
    except ValidationError as error:
        faults += [
            Fault(_place(found["loc"]), _message(found))
            for found in error.errors(include_url=False)
        ]
    if persona is not None:
        faults += _cross_faults(persona, file)
    if faults or persona is None:
        raise source.refusal(faults)
    return PersonaFile(file, blake2b(source.content, digest_size=16).hexdigest(), persona)


def _place(loc: tuple[int | str, ...]) -> KeyPath:
    """Return the path in the file: pydantic adds a part for a key that is wrong by itself."""
    return tuple(part for part in loc if part != "[key]")


def _message(found: Any) -> str:
    if found["type"] == "extra_forbidden":
        return unknown_key(str(found["loc"][-1]), _known_at(found["loc"][:-1]))
    if found["type"] == "string_type" and isinstance(found["input"], (bool, int, float)):
        return f"{found['input']!r} is no text for YAML; put it in quotes."
    if found["loc"][-1] == "[key]":
        return "wrong key: names are lower-case letters, digits and _, beginning with a letter."
    return as_sentence(found["msg"])


def _known_at(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the part of a persona at this place may have."""
    annotation: Any = Persona
    for part in loc:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(part)].annotation
        else:
            annotation = get_args(annotation)[-1]
            while get_args(annotation) and not isinstance(annotation, type):
                annotation = get_args(annotation)[0]
    return list(annotation.model_fields) if hasattr(annotation, "model_fields") else []


def _cross_faults(persona: Persona, file: Path) -> Iterator[Fault]:
    if persona.name != file.stem:
        yield Fault(("name",), f"must be the file's name, `{file.stem}`.")
    if persona.language not in persona.understanding.languages:
        yield Fault(("language",), "must be one of understanding.languages.")
    for place, code in enumerate(persona.understanding.languages):
        if code not in LANGUAGE_CODES:
            yield Fault(
                ("understanding", "languages", place),
                f"`{code}` is no language that can be told; take ISO 639-1 codes.",
            )
    yield from _intent_faults(persona)
    yield from _rule_faults(persona)
    texts: dict[KeyPath, dict[str, str]] = {
        **{("templates", name): text for name, text in persona.templates.items()},
        **{("slots", name, "ask"): slot.ask for name, slot in persona.slots.items()},
    }
    if persona.greeting is not None:
        texts[("greeting",)] = persona.greeting
    for path, by_language in texts.items():
        for language, text in by_language.items():
            here = (*path, language)
            try:
                names = placeholders(text)
            except ValueError as error:
                yield Fault(here, as_sentence(str(error)))
                continue
            yield from _unknown_names(names, persona.slots, "slot", here, itemised=False)


def _intent_faults(persona: Persona) -> Iterator[Fault]:
    if len(persona.intents) == 1:
        yield Fault(("intents",), "needs a second intent: one alone can't be told from anything.")
    owner: dict[str, str] = {}
    groups: list[tuple[KeyPath, list[str], str]] = [
        (("understanding", "out_of_scope"), persona.understanding.out_of_scope, "out_of_scope")
    ]
    for name, intent in persona.intents.items():
        yield from _unknown_names(intent.needs, persona.slots, "slot", ("intents", name, "needs"))
        groups.append((("intents", name, "examples"), intent.examples, name))
        groups.append((("intents", name, "held_out"), intent.held_out, f"{name} (held out)"))
    for path, sentences, what in groups:
        for place, sentence in enumerate(sentences):
            key = " ".join(sentence.casefold().split())
            if key in owner:
                yield Fault((*path, place), f"{sentence!r} stands under {owner[key]} too.")
            owner.setdefault(key, what)
    if len(owner) > _MOST_EXAMPLES:
        yield Fault(("intents",), f"has more than {_MOST_EXAMPLES} sentences; remove some.")


def _rule_faults(persona: Persona) -> Iterator[Fault]:
    seen: set[str] = set()
    closed = ""
    for place, rule in enumerate(persona.policy):
        here: KeyPath = ("policy", place)
        if rule.name in seen:
            yield Fault((*here, "name"), f"another rule is named `{rule.name}`.")
        seen.add(rule.name)
        if closed:
            yield Fault(here, f"is never reached: `{closed}` above always applies.")
        if rule.when.is_empty:
            closed = rule.name
        when = (*here, "when")
        yield from _unknown_names(rule.when.intents, persona.intents, "intent", (*when, "intents"))
        yield from _unknown_names(rule.when.filled, persona.slots, "slot", (*when, "filled"))
        if rule.template is not None:
            yield from _unknown_names(
                [rule.template], persona.templates, "template", (*here, "template"), itemised=False
            )


def _unknown_names(
    names: list[str], known: Any, what: str, path: KeyPath, *, itemised: bool = True
) -> Iterator[Fault]:
    for place, name in enumerate(names):
        if name not in known:
            some = ", ".join(known) or "none"
            here = (*path, place) if itemised else path
            yield Fault(here, f"there is no {what} `{name}`; there are: {some}.")
