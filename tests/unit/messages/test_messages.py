"""What goes from one process to another arrives as it was, and nobody changes it on the way."""

from __future__ import annotations

import dataclasses
import pickle
from types import ModuleType
from typing import Any

import pytest

from serve_app import errors
from serve_app.errors import ConversationNotFound, Overloaded, ParleyError
from serve_app.messages import dialogue, generation, tokenization
from serve_app.messages.dialogue import (
    CommitTurn,
    Item,
    PersonaView,
    PlanTurn,
    SummaryPlan,
    TurnPlan,
)
from serve_app.messages.generation import (
    Admitted,
    Begun,
    Finished,
    FinishReason,
    Frame,
    GenerateRequest,
    Room,
    SamplingParams,
    TokenLogprobs,
)
from serve_app.messages.tokenization import ChatEncoding, Message, TextEncoding, TokenizerInfo
from serve_app.telemetry.account import Spent, Stage
from serve_app.telemetry.origin import Origin

ITEM = Item("msg_1", "user", "a\u2028b\0", response="resp_1", created_at=7)
SAMPLING = SamplingParams(
    max_tokens=5, seed=2**64 - 1, logit_bias=((1, -1.5),), stop_token_ids=(2, 3), logprobs=0
)
FINISHED = Finished(3, FinishReason.ERROR, 10, 4, 2, 0.1, 0.2, 0.3, "generator_lost", "It died.")
MESSAGES = [
    PlanTurn(
        "t",
        (Message("user", "Hi.", name="Ada"),),
        conversation="conv_1",
        truncate=False,
        origin=Origin("resp_1", tenant="t"),
    ),
    TurnPlan((1, 2), 5, 1, "conv_1", spent=Spent(0.5, (Stage("load", 0.25, 0.125),))),
    ITEM,
    CommitTurn("t", "conv_1", "resp_1", (ITEM,)),
    PersonaView("pizza", "Hello!", "interrupt", 60),
    SummaryPlan((1, 2), 64, 3),
    SAMPLING,
    GenerateRequest("resp_1", "ingress-1", 3, (1, 2), SAMPLING, output=(4,), timeout_s=1.5),
    TokenLogprobs(-0.5, ((1, -0.5), (2, -1.0))),
    FINISHED,
    Room(288, 16, 2.5),
    Frame((3, 3), (7, 8), (TokenLogprobs(-0.5), None), (FINISHED,), room=Room(288, 16, 2.5)),
    Begun(3, 16, 0.25, 0.5),
    Admitted("replica-1", carries_frames=True),
    Message("user", "Hi."),
    ChatEncoding((1, 2, 3), (2,), 1),
    TextEncoding((1, 2), 0.5),
    TokenizerInfo("m", 10, 128, (2,), 7),
]


def sent(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - our own


def kinds(module: ModuleType) -> set[type]:
    every = (getattr(module, name) for name in module.__all__)
    return {one for one in every if isinstance(one, type) and dataclasses.is_dataclass(one)}


def test_every_message_is_among_those_tried_here() -> None:
    every = kinds(dialogue) | kinds(generation) | kinds(tokenization)
    assert {type(message) for message in MESSAGES} == every


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_way_between_processes(message: Any) -> None:
    arrived = sent(message)
    assert arrived == message
    assert type(arrived) is type(message)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_frozen_and_has_no_room_for_more(message: Any) -> None:
    (first, *_) = dataclasses.fields(message)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, first.name, None)
    assert not hasattr(message, "__dict__")


def test_a_finish_reason_is_still_itself_behind_the_way() -> None:
    for reason in FinishReason:
        assert sent(reason) is reason


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_keeps_all_that_a_client_may_know_of_it(name: str) -> None:
    error: ParleyError = getattr(errors, name)("Do this.", param="p", code="c", retry_after=2.5)
    arrived = sent(error)
    assert type(arrived) is type(error)
    assert (arrived.message, arrived.param, arrived.code, arrived.retry_after) == (
        "Do this.",
        "p",
        "c",
        2.5,
    )


def test_an_error_without_a_code_of_its_own_keeps_that_of_its_kind() -> None:
    for error in (ConversationNotFound("x"), Overloaded("x")):
        assert sent(error).code == type(error).code
