"""The oldest turns leave the prompt; the persona and the newest turn never do."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.dialogue.planner import Budget, PromptPlan, fit, leading, plan
from serve_app.errors import ContextLengthExceeded
from serve_app.messages.tokenization import ChatEncoding, Message

OVERHEAD = 3


def chat(pattern: str) -> list[Message]:
    """Make messages from their roles' initials: `suau`; each is told by its place."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(roles[initial], f"{place}") for place, initial in enumerate(pattern)]


def encode(messages: Sequence[Message], each: int = 10) -> ChatEncoding:
    costs = tuple(each for _ in messages)
    return ChatEncoding(tuple(range(sum(costs) + OVERHEAD)), costs, OVERHEAD)


def planned(pattern: str, budget: Budget) -> tuple[str, PromptPlan]:
    messages = chat(pattern)
    made = plan(messages, encode(messages), budget, pinned=leading(messages))
    return " ".join(message.content for message in made.messages), made


def test_what_fits_stays_whole_and_the_reply_gets_the_rest() -> None:
    kept, made = planned("suau", Budget(context=100, reply=20))
    assert (kept, made.turns_left_out, made.max_tokens) == ("0 1 2 3", 0, 100 - 43)


def test_max_tokens_is_kept_where_there_is_room() -> None:
    _, made = planned("suau", Budget(context=100, reply=20, max_tokens=30))
    assert made.max_tokens == 30


def test_max_tokens_is_cut_to_what_is_left() -> None:
    _, made = planned("su", Budget(context=30, reply=20, max_tokens=1000))
    assert made.max_tokens == 7


def test_the_oldest_turn_leaves_first() -> None:
    # 73 tokens and 20 for the reply are 13 too many: one turn of 20 has to go.
    kept, made = planned("suauaua", Budget(context=80, reply=20))
    assert (kept, made.turns_left_out) == ("0 3 4 5 6", 1)


def test_no_more_turns_leave_than_needed() -> None:
    assert planned("suauauau", Budget(context=103, reply=20))[1].turns_left_out == 0
    assert planned("suauauau", Budget(context=102, reply=20))[1].turns_left_out == 1
    assert planned("suauauau", Budget(context=82, reply=20))[1].turns_left_out == 2


@pytest.mark.parametrize(
    ("pattern", "persona"),
    [("ssuauau", "0 1"), ("suauau", "0"), ("uauau", ""), ("auau", ""), ("usau", "")],
)
def test_only_what_the_system_says_first_never_leaves(pattern: str, persona: str) -> None:
    kept, _ = planned(pattern, Budget(context=50, reply=20))
    assert kept == f"{persona} {len(pattern) - 1}".strip()


@pytest.mark.parametrize(
    ("pattern", "newest"),
    [
        ("suasuasu", "6 7"),
        ("suausasu", "6 7"),
        ("suasusau", "7"),
        ("suauas", "3 4 5"),
        ("suauaus", "5 6"),
    ],
)
def test_what_the_system_says_later_leaves_with_its_turn(pattern: str, newest: str) -> None:
    kept, _ = planned(pattern, Budget(context=60, reply=20))
    assert kept == f"0 {newest}"


def test_a_system_message_does_not_become_the_persona_when_the_turns_before_it_leave() -> None:
    messages = chat("suasuasu")
    pinned = leading(messages)
    budget = Budget(context=100, reply=20)
    first = plan(messages, encode(messages), budget, pinned=pinned)
    assert [m.content for m in first.messages] == ["0", "3", "4", "5", "6", "7"]
    second = plan(first.messages, encode(first.messages, each=14), budget, pinned=pinned)
    assert [m.content for m in second.messages] == ["0", "6", "7"]


def test_the_newest_turn_never_leaves() -> None:
    kept, made = planned("suau", Budget(context=30, reply=20))
    assert (kept, made.turns_left_out) == ("0 3", 1)


def test_a_greeting_leaves_with_the_first_turn() -> None:
    kept, made = planned("sauau", Budget(context=50, reply=20))
    assert (kept, made.turns_left_out) == ("0 4", 1)


def test_messages_in_a_row_are_one_turn() -> None:
    kept, made = planned("suuaauu", Budget(context=50, reply=20))
    assert (kept, made.turns_left_out) == ("0 5 6", 1)


def test_a_generous_max_tokens_does_not_cost_the_history() -> None:
    _, made = planned("suauau", Budget(context=200, reply=20, max_tokens=10_000))
    assert (made.turns_left_out, made.max_tokens) == (0, 200 - 63)


def test_what_must_stay_and_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(ContextLengthExceeded, match=r"20 tokens.* take 23, and 7 more were asked"):
        planned("su", Budget(context=20, reply=5, max_tokens=7))


def test_without_truncation_nothing_leaves_and_what_does_not_fit_is_refused() -> None:
    fits = Budget(context=63, reply=20, max_tokens=20, truncate=False)
    assert planned("suau", fits)[1].turns_left_out == 0
    tight = Budget(context=62, reply=20, max_tokens=20, truncate=False)
    with pytest.raises(
        ContextLengthExceeded, match=r"62 tokens: the messages take 43, and 20 more"
    ):
        planned("suau", tight)


def test_without_truncation_and_max_tokens_one_token_is_enough() -> None:
    whole = Budget(context=44, reply=20, truncate=False)
    assert planned("suau", whole)[1].max_tokens == 1
    with pytest.raises(ContextLengthExceeded):
        planned("suau", Budget(context=43, reply=20, truncate=False))


def test_strides_keep_the_beginning_the_same_for_several_turns() -> None:
    budget = Budget(context=200, reply=20, stride=60)
    beginnings = []
    for turns in range(10, 22):
        kept, _ = planned("s" + "ua" * turns + "u", budget)
        beginnings.append(kept.split()[1])
    assert len(set(beginnings)) <= 5 < len(beginnings)
    moving = Budget(context=200, reply=20)
    assert len({planned("s" + "ua" * t + "u", moving)[0].split()[1] for t in range(10, 22)}) == 12


def test_messages_that_cannot_fit_leave_before_they_are_encoded() -> None:
    messages = chat("s" + "ua" * 500 + "u")
    made = fit(messages, Budget(context=100, reply=20), pinned=1)
    assert len(made.messages) in {99, 100}
    assert made.messages[0].role == "system"
    assert made.messages[-1] == messages[-1]
    assert made.turns_left_out == (len(messages) - len(made.messages)) // 2


def test_everything_is_encoded_where_it_might_fit_or_may_not_leave() -> None:
    messages = chat("suau")
    assert fit(messages, Budget(context=4, reply=2), pinned=1).messages == tuple(messages)
    refusing = Budget(context=2, reply=1, truncate=False)
    assert fit(messages, refusing, pinned=1).messages == tuple(messages)


@given(
    pattern=st.text("sua", min_size=1, max_size=30),
    context=st.integers(10, 400),
    reply=st.integers(1, 200),
    stride=st.sampled_from([0, 16, 64]),
    asked=st.none() | st.integers(1, 500),
)
def test_plans_keep_their_promises_for_any_conversation(
    pattern: str, context: int, reply: int, stride: int, asked: int | None
) -> None:
    messages = chat(pattern)
    budget = Budget(context, reply, max_tokens=asked, stride=stride)
    pinned = len(pattern) - len(pattern.lstrip("s"))
    try:
        made = plan(messages, encode(messages), budget, pinned=pinned)
        final = plan(made.messages, encode(made.messages), budget, pinned=pinned)
    except ContextLengthExceeded:
        # Only where what must stay fills the context: the persona, and the newest turn.
        newest = re.search(r"(^[as]*)?[us]*[as]*$", pattern[pinned:])
        assert newest
        assert (pinned + len(newest[0])) * 10 + OVERHEAD >= context
        return
    assert final.turns_left_out == 0
    assert list(made.messages[:pinned]) == messages[:pinned]
    if "u" in pattern:
        assert messages[pattern.rindex("u")] in made.messages
    # Those that stay are the newest, in order.
    talk, stays = messages[pinned:], list(made.messages[pinned:])
    assert stays == talk[len(talk) - len(stays) :]
    assert 1 <= final.max_tokens <= context - len(final.messages) * 10 - OVERHEAD
    assert asked is None or final.max_tokens <= asked
