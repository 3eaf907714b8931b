"""The policy: a turn changes the state, the first rule that applies decides, and says why."""

from __future__ import annotations

import dataclasses
import json
from datetime import date
from typing import Any, get_args

import pytest

from serve_app.dialogue.nlu.understanding import Entity, Intent, Label, Span, Understanding
from serve_app.dialogue.personas.schema import CheckName, Persona
from serve_app.dialogue.policy.checks import CHECKS
from serve_app.dialogue.policy.decision import NO_RULE, Decision, decide, take_turn
from serve_app.dialogue.policy.state import HISTORY, DialogueState
from serve_app.dialogue.policy.tracking import track

TODAY = date(2026, 3, 11)
SCORES = {"negative": -0.6, "neutral": 0.0, "positive": 0.6}


def turn(
    text: str = "words",
    intent: str | None = None,
    confidence: float = 0.9,
    *,
    entities: tuple[Entity, ...] = (),
    sentiment: str = "neutral",
    emotion: str = "neutral",
    language: str = "en",
    ranking: tuple[tuple[str, float], ...] = (),
) -> Understanding:
    span = Span(0, len(text))
    return Understanding(
        text=text,
        language=Label(language, 0.9, span),
        sentiment=Label(sentiment, 0.8, span, SCORES[sentiment]),
        emotion=Label(emotion, 0.8, span),
        intent=Intent(
            intent, confidence, span, ranking or (((intent, confidence),) if intent else ())
        ),
        entities=entities,
    )


def entity(kind: Any, value: str, slot: str | None = None) -> Entity:
    return Entity(kind, value, value, 0.95, Span(0, len(value)), slot)


def persona(*rules: dict[str, Any]) -> Persona:
    return Persona.model_validate(
        {
            "name": "shop",
            "title": "Shop",
            "system_prompt": "You answer.",
            "intents": {
                "book": {
                    "needs": ["first", "last", "notes"],
                    "examples": ["a room", "a bed", "a stay"],
                },
                "status": {"needs": ["code"], "examples": ["where", "when", "how long"]},
                "bye": {"examples": ["bye", "ciao", "see you"]},
            },
            "slots": {
                "first": {"entity": "date", "ask": "From when?"},
                "last": {"entity": "date", "ask": {"en": "From {first} until?", "de": "Bis?"}},
                "notes": {"entity": "text", "ask": "Any wishes?"},
                "code": {"entity": "code", "pattern": "[A-Z]{2}[0-9]{3}", "ask": "Which code?"},
            },
            "templates": {
                "seen": {"en": "Order {code}.", "de": "Bestellung {code}."},
                "out": "A person takes over.",
            },
            "policy": [{"name": f"rule_{place}", **rule} for place, rule in enumerate(rules)],
        }
    )


ASK = {"when": {"slots_missing": True}, "action": "ask"}
ANSWER = {"action": "answer"}


def talk(shop: Persona, *turns: Understanding) -> tuple[list[Decision], DialogueState]:
    state, decisions = DialogueState(), []
    for each in turns:
        decision, state = take_turn(state, each, shop, today=TODAY)
        decisions.append(decision)
    return decisions, state


def test_slots_are_asked_for_in_order_until_all_are_filled() -> None:
    decisions, state = talk(
        persona(ASK, ANSWER),
        turn("a room please", "book"),
        turn("from tomorrow", entities=(entity("date", "2026-03-12"),)),
        turn("the 14th", entities=(entity("date", "2026-03-14"),)),
        turn("a quiet one"),
    )
    assert [decision.action for decision in decisions] == ["ask", "ask", "ask", "answer"]
    assert [decision.slot for decision in decisions] == ["first", "last", "notes", None]
    assert decisions[1].text == "From 2026-03-12 until?"
    assert decisions[0].reason == "First, last, notes is missing for book."
    assert {name: slot.value for name, slot in state.slots.items()} == {
        "first": "2026-03-12",
        "last": "2026-03-14",
        "notes": "a quiet one",
    }
    assert state.slots["last"].turn == 3
    assert state.intent == "book"


def test_one_turn_fills_several_slots_and_a_later_one_corrects_them() -> None:
    both = (entity("date", "2026-03-12"), entity("date", "2026-03-14"))
    _, state = talk(persona(ASK, ANSWER), turn("a room", "book", entities=both))
    assert {name: slot.value for name, slot in state.slots.items()} == {
        "first": "2026-03-12",
        "last": "2026-03-14",
    }
    corrected = track(
        state, turn("no", "book", entities=(entity("code", "AB123", "code"),)), persona()
    )
    assert corrected.slots["code"].value == "AB123"


def test_an_answer_stays_with_its_question_unless_it_clearly_has_another_subject() -> None:
    shop = persona(ASK, ANSWER)
    given = (entity("code", "AB123", "code"),)
    _, same = talk(shop, turn("where", "status"), turn("AB123", "bye", 0.5, entities=given))
    assert (same.intent, same.slots["code"].value) == ("status", "AB123")
    _, other = talk(shop, turn("where", "status"), turn("bye, AB123", "bye", 0.9, entities=given))
    assert other.intent == "bye"


def test_a_question_that_gets_no_answer_is_counted() -> None:
    shop = persona({"when": {"asked": 2}, "action": "hand_over", "template": "out"}, ASK, ANSWER)
    decisions, state = talk(shop, turn("where", "status"), turn("hm"), turn("well"))
    assert [decision.action for decision in decisions] == ["ask", "ask", "hand_over"]
    assert decisions[-1].reason == "Code was asked for 2 times (≥ 2)."
    assert decisions[-1].text == "A person takes over."
    assert state.unrecognised_turns == 2


def test_the_first_rule_that_applies_decides() -> None:
    shop = persona(
        {"when": {"intents": ["bye"], "min_confidence": 0.95}, "action": "goodbye"},
        {"when": {"intents": ["bye"]}, "action": "refuse"},
        ANSWER,
    )
    (decision,), _ = talk(shop, turn("bye", "bye", 0.9))
    assert (decision.action, decision.rule) == ("refuse", "rule_1")
    assert decision.reason == "The intent is bye (0.90)."
    (decision,), _ = talk(shop, turn("bye", "bye", 0.96))
    assert decision.reason == "The intent is bye (0.96 ≥ 0.95)."


def test_without_a_rule_the_model_answers() -> None:
    (decision,), _ = talk(persona(), turn("anything"))
    assert (decision.action, decision.rule, decision.text) == ("answer", NO_RULE, None)


def test_a_rule_may_act_on_a_little_probability() -> None:
    shop = persona({"when": {"intents": ["bye"], "min_confidence": 0.3}, "action": "goodbye"})
    (decision,), _ = talk(shop, turn("hm", ranking=(("status", 0.39), ("bye", 0.35))))
    assert decision.action == "goodbye"


@pytest.mark.parametrize(
    ("when", "turns", "reason"),
    [
        (
            {"unrecognised_turns": 2},
            [turn(), turn()],
            "2 turns in a row were not understood (≥ 2).",
        ),
        ({"negative_turns": 1}, [turn(sentiment="negative")], "1 turn was negative (≥ 1)."),
        ({"mood_below": -0.3}, [turn(sentiment="negative")] * 2, "The mood is -0.38 < -0.3."),
        ({"sentiments": ["positive"]}, [turn(sentiment="positive")], "The turn is positive."),
        ({"emotions": ["anger"]}, [turn(emotion="anger")], "The turn shows anger."),
        ({"languages": ["de"]}, [turn(language="de")], "The language is de."),
        ({"languages_other_than": ["de"]}, [turn()], "The language is en."),
        ({"turns": 2}, [turn(), turn()], "It is turn 2 ≥ 2."),
        (
            {"entities": ["email"]},
            [turn(entities=(entity("email", "a@b.de"),))],
            "The turn has email.",
        ),
        (
            {"filled": ["code"]},
            [turn("where", "status", entities=(entity("code", "AB123", "code"),))],
            "Code is known.",
        ),
        ({"slots_missing": False}, [turn()], "No slot is missing."),
        (
            {"checks": ["repeats_itself"]},
            [turn("Why?"), turn("why")],
            "The turn says the same as the one before.",
        ),
        (
            {"checks": ["date_in_the_past"]},
            [turn(entities=(entity("date", "2026-03-10"),))],
            "'2026-03-10' is in the past.",
        ),
    ],
)
def test_a_condition_holds_and_says_why(
    when: dict[str, Any], turns: list[Understanding], reason: str
) -> None:
    shop = persona({"when": when, "action": "clarify"})
    decisions, _ = talk(shop, *turns)
    assert [decision.action for decision in decisions[:-1]] == ["answer"] * (len(turns) - 1)
    assert decisions[-1].reason == reason


@pytest.mark.parametrize(
    ("when", "other"),
    [
        ({"unrecognised_turns": 1}, turn("bye", "bye")),
        ({"negative_turns": 1}, turn(sentiment="positive")),
        ({"mood_below": -0.3}, turn(sentiment="negative")),
        ({"languages_other_than": ["en"]}, turn()),
        ({"entities": ["email", "date"]}, turn(entities=(entity("email", "a@b.de"),))),
        ({"filled": ["code"]}, turn("where", "status")),
        ({"slots_missing": False}, turn("where", "status")),
        ({"intents": ["bye"], "sentiments": ["negative"]}, turn("bye", "bye")),
        ({"checks": ["repeats_itself"]}, turn("why")),
        ({"checks": ["date_in_the_past"]}, turn(entities=(entity("date", "2026-W02"),))),
    ],
)
def test_a_condition_that_does_not_hold_lets_the_turn_pass(
    when: dict[str, Any], other: Understanding
) -> None:
    (decision,), _ = talk(persona({"when": when, "action": "clarify"}), other)
    assert decision.rule == NO_RULE


def test_fixed_words_are_in_the_language_of_the_turn_and_have_the_slots() -> None:
    shop = persona({"action": "answer", "template": "seen"})
    given = (entity("code", "AB123", "code"),)
    (german,), _ = talk(shop, turn("wo", "status", entities=given, language="de"))
    (french,), _ = talk(shop, turn("où", "status", language="fr"))
    assert german.text == "Bestellung AB123."
    assert french.text == "Order …."


def test_deciding_changes_nothing_and_gives_the_same_again() -> None:
    shop = persona(ASK, ANSWER)
    state = track(DialogueState(), turn("where", "status"), shop)
    before = state.to_json()
    first = decide(state, turn("where", "status"), shop, today=TODAY)
    assert decide(state, turn("where", "status"), shop, today=TODAY) == first
    assert state.to_json() == before


def test_a_state_survives_json() -> None:
    _, state = talk(
        persona(ASK, ANSWER),
        turn("where", "status", sentiment="negative"),
        turn("AB123", entities=(entity("code", "AB123", "code"),)),
        turn("a room", "book"),
    )
    assert DialogueState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_a_state_of_another_release_is_read_as_far_as_it_is_known() -> None:
    _, state = talk(
        persona(ASK), turn("AB123", "status", entities=(entity("code", "AB123", "code"),))
    )
    stored = json.loads(json.dumps(state.to_json()))
    stored["later"] = 1
    stored["slots"]["code"]["later"] = 1
    del stored["mood"]
    assert DialogueState.from_json(stored) == dataclasses.replace(state, mood=0.0)
    assert DialogueState.from_json({**stored, "version": 99}) == DialogueState()


def test_the_state_does_not_grow_with_the_conversation() -> None:
    _, state = talk(persona(), *[turn(f"turn {place}") for place in range(HISTORY + 5)])
    assert len(state.intents) == len(state.moods) == HISTORY
    assert state.turns == HISTORY + 5


def test_a_persona_that_changed_meanwhile_drops_what_it_does_not_know() -> None:
    _, state = talk(persona(ASK), turn("where", "status"))
    other = Persona.model_validate({"name": "o", "title": "O", "system_prompt": "O"})
    decision, state = take_turn(state, turn("AB123", "status"), other, today=TODAY)
    assert (decision.rule, state.intent, state.wanted, state.slots) == (NO_RULE, None, (), {})


def test_every_check_has_its_class() -> None:
    assert CHECKS.keys() == set(get_args(CheckName))
