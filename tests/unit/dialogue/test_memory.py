"""What is remembered: facts that users say, turns that come back, and what a summary is asked from."""

from __future__ import annotations

import pytest

from serve_app.dialogue.memory.facts import MOST_CHARACTERS, find_facts
from serve_app.dialogue.memory.recall import recalled
from serve_app.dialogue.memory.summary import summary_request
from serve_app.messages.tokenization import Message
from serve_app.state.records import StoredItem

SAID = {
    "My name is Ann Lee and I like hiking.": ["The user's name is Ann Lee.", "The user likes hiking."],
    "Hi, call me Bo!": ["The user's name is Bo."],
    "I live in New York, but I'm from Texas.": ["The user lives in New York.", "The user is from Texas."],
    "I'm allergic to nuts and milk.": ["The user is allergic to nuts.", "The user is allergic to milk."],
    "I don't like olives, anchovies and capers": [
        "The user doesn't like olives.", "The user doesn't like anchovies.", "The user doesn't like capers.",
    ],
    "I'm vegetarian": ["The user is vegetarian."],
    "I work as a nurse.": ["The user works as nurse."],
    "Please remember that my cat needs food at six.": ["The user asked to remember: my cat needs food at six."],
    "Ich heiße Jörg und ich wohne in Köln.": ["The user's name is Jörg.", "The user lives in Köln."],
    "我叫小明，我住在北京。": ["The user's name is 小明.", "The user lives in 北京."],
}  # fmt: skip


@pytest.mark.parametrize("text", SAID)
def test_what_a_user_says_of_themselves_is_found(text: str) -> None:
    assert sorted(fact.text for fact in find_facts(text)) == sorted(SAID[text])


@pytest.mark.parametrize(
    "text",
    [
        "Is my name is Ann a sentence?",
        "I like to sleep",
        "I like it when it rains",
        "I love you",
        "My order number is AB-123456",
        "She lives in Berlin and likes tea",
        "I'm from",
        "x" * MOST_CHARACTERS + " My name is Ann.",
    ],
)
def test_what_is_no_plain_statement_of_theirs_is_left_alone(text: str) -> None:
    assert find_facts(text) == ()


def test_facts_about_the_same_have_one_subject_whatever_they_say() -> None:
    before, after = find_facts("I like tea.")[0], find_facts("I don't like Tea.")[0]
    assert before.subject == after.subject == "taste:tea"
    assert find_facts("I live in Rome. I live in Bonn.")[0].text == "The user lives in Bonn."


def turn(asked: str, told: str = "I see.") -> list[Message]:
    return [Message("user", asked), Message("assistant", told)]


def test_the_turns_with_most_in_common_come_back_first() -> None:
    turns = [turn("We talked about weather"), turn("My llamas like weather"), turn("I play chess")]
    assert recalled(turns, "How do llamas take weather?", most=2)[0].startswith(
        'The user said: "My llamas like weather"'
    )
    assert recalled(turns, "Tell me a joke", most=2) == ()
    assert recalled([], "llamas", most=2) == ()


def test_a_word_that_all_turns_have_brings_nothing_back() -> None:
    turns = [turn(f"please number {number}") for number in range(3)]
    assert recalled(turns, "please", most=3) == ()


def test_a_summary_goes_on_from_the_one_before() -> None:
    items = [StoredItem("1", "user", "Hi"), StoredItem("2", "assistant", "Hello")]
    task, asked = summary_request("Ann likes tea.", items)
    assert task.role == "system"
    assert asked.content == "Notes so far: Ann likes tea.\nUser: Hi\nAssistant: Hello\n\nNotes:"
    _, less = summary_request(None, items, without=1)
    assert less.content == "Assistant: Hello\n\nNotes:"
