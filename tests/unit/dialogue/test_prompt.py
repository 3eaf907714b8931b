"""Personas' prompts: what they hold, in which order, and what gives way."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from serve_app.dialogue.conduct import Conduct, conduct_turn
from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.persona_planner import PersonaPlanner, PersonaPrompt
from serve_app.dialogue.personas.catalog import PersonaCatalog
from serve_app.dialogue.personas.running import RunningPersona, RunningPersonas
from serve_app.dialogue.planner import beyond_window
from serve_app.dialogue.prompt import Draft, Remembered, spend
from serve_app.errors import ContextLengthExceeded, InvalidRequest
from serve_app.messages.dialogue import PlanTurn
from serve_app.messages.tokenization import ChatEncoding, Message
from serve_app.settings import DialogueSettings
from serve_app.state.profiles import Fact
from serve_app.state.records import StoredItem
from serve_app.state.turns import BegunTurn

TODAY = date(2026, 3, 9)
GUIDE = """
name: guide
title: Guide
system_prompt: You guide people.
memory: {window_turns: 4, summary: true, profile: true}
limits: {max_input_chars: 400, max_reply_tokens: 20, max_turns: 3}
shaping:
  preferences: true
  emotion: true
  guidance: {anger: Stay calm.}
"""


class WordTokenizer:
    """A token a word, and one more for each message; refuses what a strict template would."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.seen: list[tuple[Message, ...]] = []

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        if self.strict and messages[1].role != "user":
            raise InvalidRequest("the template takes a user's message first")
        if self.strict and any(message.role == "system" for message in messages[1:]):
            raise InvalidRequest("the template takes one system message")
        self.seen.append(messages)
        costs = tuple(1 + len(message.content.split()) for message in messages)
        return ChatEncoding(tuple(range(sum(costs))), costs, 0)

    async def count(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(len(text.split()) for text in texts)


@pytest.fixture
def guide(tmp_path: Path) -> RunningPersona:
    (tmp_path / "guide.yaml").write_text(GUIDE)
    catalog = PersonaCatalog(tmp_path)
    return RunningPersonas(catalog, IntentStore(tmp_path / "fitted")).get("guide")


def history(turns: int, words: str = "") -> tuple[StoredItem, ...]:
    return tuple(
        StoredItem(f"msg_{number}_{role}", role, f"{role} says {number} {words}".strip())
        for number in range(turns)
        for role in ("user", "assistant")
    )


def saying(guide: RunningPersona, text: str) -> Conduct:
    return conduct_turn(guide, None, [Message("user", text)], today=TODAY)


async def planned(
    guide: RunningPersona,
    tokenizer: WordTokenizer,
    begun: BegunTurn,
    text: str = "And now?",
    *,
    context: int = 2000,
    settings: DialogueSettings | None = None,
    **given: object,
) -> PersonaPrompt:
    planner = PersonaPlanner(
        tokenizer, settings or DialogueSettings(truncate_stride=0), context_length=context
    )
    turn = PlanTurn("acme", (Message("user", text),), **given)  # type: ignore[arg-type]
    return await planner.plan(saying(guide, text), turn, begun)


async def test_facts_and_summary_follow_the_persona_and_the_window_follows_them(
    guide: RunningPersona,
) -> None:
    tokenizer = WordTokenizer()
    facts = tuple(Fact(f"f{n}", "", f"The user likes {n}.", "said", None, n) for n in range(2))
    begun = BegunTurn(history=history(2), facts=facts, summary="They met.", summary_at="gone")
    await planned(guide, tokenizer, begun, instructions="Be brief.")
    (messages,) = tokenizer.seen
    assert messages[0] == Message(
        "system",
        "You guide people.\n\nBe brief.\n\n"
        "What you know of the user:\n- The user likes 1.\n- The user likes 0.\n\n"
        "Earlier in this conversation: They met.",
    )
    assert [message.content for message in messages[1:]] == [
        "user says 0", "assistant says 0", "user says 1", "assistant says 1", "And now?",
    ]  # fmt: skip


async def test_the_window_leaves_in_strides_and_its_end_is_named(guide: RunningPersona) -> None:
    tokenizer = WordTokenizer()
    prompt = await planned(guide, tokenizer, BegunTurn(history=history(6)))
    assert prompt.turns_left_out == 3
    assert prompt.messages_left_out == 6
    assert tokenizer.seen[0][1].content == "user says 3"


async def test_a_turn_that_left_comes_back_where_the_new_one_is_about_it(
    guide: RunningPersona,
) -> None:
    tokenizer = WordTokenizer()
    old = StoredItem("msg_a", "user", "My sister breeds llamas in Peru"), StoredItem("msg_b", "assistant", "How nice!")  # fmt: skip
    prompt = await planned(
        guide, tokenizer, BegunTurn(history=(*old, *history(6))), "Tell me about llamas"
    )
    assert len(prompt.remembered.recalled) == 1
    note, newest = tokenizer.seen[-1][-2:]
    assert note.role == "system"
    assert '"My sister breeds llamas in Peru"' in note.content
    assert newest.content == "Tell me about llamas"


async def test_memory_gives_way_where_the_newest_turn_needs_the_room(guide: RunningPersona) -> None:
    tokenizer = WordTokenizer()
    facts = (Fact("f", "", "word " * 30, "said", None, 0),)
    text = "word " * 60
    prompt = await planned(guide, tokenizer, BegunTurn(facts=facts), text, context=130)
    assert prompt.remembered.facts == ()
    with pytest.raises(ContextLengthExceeded):
        await planned(guide, tokenizer, BegunTurn(facts=facts), text, context=60)


async def test_memory_takes_no_more_than_its_share(guide: RunningPersona) -> None:
    facts = tuple(Fact(f"f{n}", "", f"{n} " + "word " * 9, "said", None, n) for n in range(9))
    for share, expected in ((0.0, 0), (0.1, 5), (0.5, 9)):
        settings = DialogueSettings(truncate_stride=0, memory_share=share)
        prompt = await planned(
            guide, WordTokenizer(), BegunTurn(facts=facts), context=500, settings=settings
        )
        assert len(prompt.remembered.facts) == expected


async def test_what_settings_or_persona_turn_off_is_not_remembered(
    guide: RunningPersona, tmp_path: Path
) -> None:
    begun = BegunTurn(facts=(Fact("f", "", "A fact.", "said", None, 0),), summary="They met.")
    off = DialogueSettings(profiles=False, summaries=False)
    assert (await planned(guide, WordTokenizer(), begun, settings=off)).remembered.parts == ()
    (tmp_path / "shy.yaml").write_text(
        "name: shy\ntitle: Shy\nsystem_prompt: You forget.\nmemory: {summary: false, profile: true}\n"
    )
    shy = RunningPersonas(PersonaCatalog(tmp_path), IntentStore(tmp_path / "fitted")).get("shy")
    # Facts are kept for it, but it doesn't let them shape replies.
    assert (await planned(shy, WordTokenizer(), begun)).remembered.parts == ()


async def test_the_personas_limit_holds_where_the_request_names_none(guide: RunningPersona) -> None:
    assert (await planned(guide, WordTokenizer(), BegunTurn())).max_tokens == 20
    prompt = await planned(guide, WordTokenizer(), BegunTurn(), max_tokens=70)
    assert prompt.max_tokens == 70


async def test_a_turn_s_note_goes_to_the_front_for_templates_that_want_it_there(
    guide: RunningPersona,
) -> None:
    angry = "I am furious, this is outrageous!"
    loose, strict = WordTokenizer(), WordTokenizer(strict=True)
    await planned(guide, loose, BegunTurn(history=history(1)), angry)
    assert loose.seen[0][-2] == Message("system", "Stay calm.")
    await planned(guide, strict, BegunTurn(history=history(1)), angry)
    assert strict.seen[0][0].content == "You guide people.\n\nStay calm."


async def test_a_conversation_s_own_system_message_stays_beside_the_persona(
    guide: RunningPersona,
) -> None:
    tokenizer = WordTokenizer()
    own = StoredItem("msg_s", "system", "Speak of boats.")
    await planned(
        guide, tokenizer, BegunTurn(history=(own, *history(40, "word " * 20))), context=300
    )
    assert tokenizer.seen[-1][0].content.startswith("You guide people.\n\nSpeak of boats.")


async def test_a_greeting_is_left_out_for_templates_that_want_the_user_first(
    guide: RunningPersona,
) -> None:
    hello = (StoredItem("msg_g", "assistant", "Hello!"),)
    loose, strict = WordTokenizer(), WordTokenizer(strict=True)
    await planned(guide, loose, BegunTurn(history=hello), "Hi")
    assert [message.role for message in loose.seen[0]] == ["system", "assistant", "user"]
    await planned(guide, strict, BegunTurn(history=hello), "Hi")
    assert [message.role for message in strict.seen[0]] == ["system", "user"]


def test_the_personas_limits_refuse_what_is_too_long_or_too_much(guide: RunningPersona) -> None:
    with pytest.raises(InvalidRequest, match="at most 400 characters"):
        saying(guide, "x" * 401)
    with pytest.raises(InvalidRequest, match="at most 3 turns") as refused:
        conduct_turn(guide, {"version": 1, "turns": 3}, [Message("user", "Hi")], today=TODAY)
    assert refused.value.code == "turn_limit_reached"


def test_a_part_that_has_no_room_makes_way_for_the_next() -> None:
    assert spend(("a", "b", "c"), (5, 9, 3), 8) == {"a", "c"}


def test_turns_leave_a_window_in_strides_and_never_all_of_them() -> None:
    assert [beyond_window(turns, 8) for turns in (1, 8, 9, 10, 11)] == [0, 0, 2, 2, 4]
    assert beyond_window(2, 1) == 1


def test_a_draft_without_anything_to_add_is_the_persona_and_the_conversation() -> None:
    body = (Message("user", "Hi"),)
    assert Draft("Be kind.", body, Remembered()).messages() == (
        Message("system", "Be kind."),
        *body,
    )
