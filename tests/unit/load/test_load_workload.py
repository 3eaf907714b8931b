from __future__ import annotations

import itertools

import pytest
from tokenizers import Tokenizer

from load.measurements import TokenCounts
from load.supply import Plan, Supply
from load.workload import Conversation, Workload
from serve_app.models.store import PreparedModel


def held(supply: Supply) -> list[Conversation]:
    return list(iter(supply.next, None))


def test_the_same_seed_asks_the_same_questions() -> None:
    assert Workload(seed=3).conversation(5) == Workload(seed=3).conversation(5)
    assert Workload(seed=3).conversation(5) != Workload(seed=4).conversation(5)


def test_conversations_share_the_system_prompt_and_nothing_else() -> None:
    openings = [Workload(turns=1).conversation(number).ask() for number in range(50)]
    assert len({opening[0] for opening in openings}) == 1
    assert openings[0][0].role == "system"
    assert len({opening[1] for opening in openings}) == 50


def test_prompts_have_about_as_many_tokens_as_asked_for(bundled_int8: PreparedModel) -> None:
    tokenizer = Tokenizer.from_file(str(bundled_int8.path / "tokenizer.json"))
    for wanted in (40, 110, 512, 4000):
        workload = Workload(system_tokens=wanted, prompt_tokens=wanted)
        for message in workload.conversation(0).ask():
            assert len(tokenizer.encode(message.content).ids) == pytest.approx(wanted, rel=0.15)


def test_a_conversation_without_system_prompt_begins_with_the_question() -> None:
    (question,) = Workload(system_tokens=0).conversation(0).ask()
    assert question.role == "user"


def test_the_history_is_sent_with_every_question() -> None:
    conversation = Workload(turns=2).conversation(0)
    first = conversation.ask()
    assert not conversation.over
    conversation.hear("An answer.", None)
    second = conversation.ask()
    assert second[: len(first)] == first
    assert [message.role for message in second] == ["system", "user", "assistant", "user"]
    assert second[2].content == "An answer."
    assert conversation.over


def test_a_turn_counts_what_the_one_before_it_has_left_behind() -> None:
    conversation = Workload(turns=3).conversation(0)
    costs = [TokenCounts(100, 32, 20), TokenCounts(150, 128, 20), None]
    heard = []
    for cost in costs:
        conversation.ask()
        heard.append(conversation.hear("An answer.", cost))
    assert heard == [costs[0], TokenCounts(150, 128, 20, held=119, spared=119), None]


def test_a_supply_ends_after_its_conversations() -> None:
    supply = Supply(Workload(), itertools.count(), conversations=3)
    assert [conversation.number for conversation in held(supply)] == [0, 1, 2]
    assert supply.handed_out == 3


def test_a_supply_ends_after_its_time() -> None:
    times = iter([100.0, 101.0, 104.9, 105.0])
    supply = Supply(Workload(), itertools.count(), duration_s=5.0, clock=lambda: next(times))
    assert len(held(supply)) == 3


def test_no_two_levels_hold_the_same_conversation() -> None:
    numbers = []
    for concurrency, warm_up, measured in Plan((1, 4), rounds=2).levels(Workload()):
        opening, rest = held(warm_up), held(measured)
        assert len(opening) == concurrency
        assert len(rest) == 2 * concurrency
        assert {len(conversation.questions) for conversation in opening} == {1}
        numbers += [conversation.number for conversation in opening + rest]
    assert len(set(numbers)) == len(numbers) == 15


def test_conversations_per_level_go_above_rounds() -> None:
    plan = Plan((8,), rounds=2, conversations=5)
    assert [len(held(measured)) for *_, measured in plan.levels(Workload())] == [5]
