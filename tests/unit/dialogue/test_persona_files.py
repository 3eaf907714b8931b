"""Persona files: strict, and every fault has its line."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from serve_app.dialogue.personas.catalog import shipped_personas
from serve_app.dialogue.personas.loading import read_persona
from serve_app.dialogue.personas.schema import (
    Action,
    CheckName,
    Condition,
    IntentExamples,
    Limits,
    Memory,
    Persona,
    Slot,
    UnderstandingSettings,
    placeholders,
    text_in,
)
from serve_app.errors import ConfigError

DOCUMENT = (Path(__file__).parents[3] / "docs" / "dialogue.md").read_text(encoding="utf-8")

PIZZA = """\
name: pizza
title: Pizza shop
system_prompt: You take orders for a pizza shop.
greeting: Hello!
intents:
  order:
    needs: [size]
    examples: [I want a pizza, One pizza please, Can I order]
  hours:
    examples: [When are you open, Are you open today, When do you close]
slots:
  size:
    entity: choice
    choices:
      large: [big]
      small: [little]
    ask: Small or large?
templates:
  done:
    en: A {size} pizza it is.
    de: Eine Pizza, {size}.
policy:
  - name: size_first
    when: {slots_missing: true}
    action: ask
  - name: ordered
    when: {intents: [order], filled: [size]}
    action: answer
    template: done
  - name: otherwise
    action: answer
"""


@pytest.fixture
def pizza(tmp_path: Path):
    """Write the pizza shop's file with one text replaced by another."""

    def write(old: str = "", new: str = "") -> Path:
        assert old in PIZZA
        file = tmp_path / "pizza.yaml"
        file.write_text(PIZZA.replace(old, new, 1), encoding="utf-8")
        return file

    return write


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read_persona(file)
    return refused.value.message


def test_a_file_in_order_is_a_persona(pizza) -> None:
    found = read_persona(pizza())
    persona = found.persona
    assert persona.intents["order"].needs == ["size"]
    assert persona.policy[1].when.filled == ["size"]
    assert text_in(persona.templates["done"], "de") == "Eine Pizza, {size}."
    assert text_in(persona.templates["done"], "zh") == "A {size} pizza it is."
    assert persona.greeting is not None
    assert text_in(persona.greeting, "de") == "Hello!"


def test_the_digest_is_of_the_content(pizza) -> None:
    before = read_persona(pizza()).digest
    assert read_persona(pizza()).digest == before
    assert read_persona(pizza("Hello!", "Hi!")).digest != before


@pytest.mark.parametrize("file", sorted(shipped_personas().glob("*.yaml")), ids=lambda f: f.stem)
def test_the_personas_that_ship_are_in_order(file: Path) -> None:
    persona = read_persona(file).persona
    assert persona.policy[-1].when.is_empty
    assert {rule.action for rule in persona.policy} >= {"answer", "goodbye"}
    assert persona.greeting is not None


def test_the_four_uses_ship() -> None:
    names = {file.stem for file in shipped_personas().glob("*.yaml")}
    assert names == {"companion", "customer_service", "tutor", "writer"}


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("greeting:", "greting:", 4, "unknown key; did you mean `greeting`?"),
        ("    needs:", "    need:", 7, "unknown key; did you mean `needs`?"),
        ("slots_missing: true", "slot_missing: true", 24, "did you mean `slots_missing`?"),
        ("entity: choice", "entity: color", 13, "Input should be"),
        ("needs: [size]", "needs: [sise]", 7, "there is no slot `sise`; there are: size."),
        ("intents: [order]", "intents: [ordre]", 27, "there is no intent `ordre`"),
        ("filled: [size]", "filled: [sugar]", 27, "there is no slot `sugar`"),
        ("template: done", "template: dnoe", 29, "there is no template `dnoe`"),
        ("A {size} pizza", "A {sise} pizza", 20, "there is no slot `sise`"),
        ("A {size} pizza", "A {size pizza", 20, "expected '}'"),
        ("A {size} pizza", "A {size!r} pizza", 20, "is no slot's name"),
        ("name: ordered", "name: size_first", 26, "another rule is named `size_first`"),
        ("    when: {slots_missing: true}\n", "", 23, "needs `slots_missing: true`"),
        ("Are you open today", "can  I order", 10, "'can  I order' stands under order too."),
        ("title: Pizza shop", "title: 12", 2, "12 is no text for YAML; put it in quotes."),
        ("[I want a pizza, One", "[no, One", 8, "False is no text for YAML; put it in quotes."),
        ("name: pizza", "name: pasta", 1, "must be the file's name, `pizza`."),
        ("title: Pizza shop", "language: fr\ntitle: P", 2, "one of understanding.languages"),
        (
            "title: Pizza shop",
            "title: P\nunderstanding:\n  languages: [en, xx]",
            4,
            "`xx` is no language that can be told",
        ),
        ("title:", "title: T\ntitle:", 3, "stands here twice"),
        ("      large: [big]\n      small: [little]\n", "      {}\n", 12, "`choices` belong to"),
        ("    when: {intents: [order], filled: [size]}\n", "", 29, "is never reached: `ordered`"),
    ],
)
def test_a_fault_has_its_line_and_says_what_to_do(
    pizza, old: str, new: str, line: int, said: str
) -> None:
    file = pizza(old, new)
    message = refusal(file)
    assert said in message
    assert f"{file}:{line}: " in message.splitlines()[0]


def test_all_faults_are_told_at_once_in_the_order_of_the_file(pizza) -> None:
    file = pizza("name: pizza\ntitle: Pizza shop\nsystem_prompt:", "name: 1\ntitel: x\nprompt:")
    lines = [line.split(":")[1] for line in refusal(file).splitlines()]
    assert lines == sorted(lines, key=int)
    assert len(lines) == 5  # two that are missing, two unknown, one of the wrong type


def test_braces_can_be_written() -> None:
    assert placeholders("{{not}} a {slot}") == ["slot"]


@pytest.mark.parametrize(
    "part", [Condition, IntentExamples, UnderstandingSettings, Limits, Memory, Slot]
)
def test_every_key_is_described_and_documented(part: type[BaseModel]) -> None:
    for key, field in part.model_fields.items():
        assert field.description or key == "ask", key
        assert f"`{key}`" in DOCUMENT, key


def test_every_action_check_and_top_key_is_documented() -> None:
    for name in (*get_args(Action), *get_args(CheckName), *Persona.model_fields):
        assert f"`{name}`" in DOCUMENT, name
