"""What clients are promised while everything dies under them, and that breaking a promise is noticed.

The machine draws what many clients do; the mutants break one thing each, and do by hand what shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from load.proving import run
from load.proving.history import History, Promise
from load.proving.machine import Machine
from load.proving.run import Broken, Setup
from load.proving.turns import Turn
from serve_app.api.response_stream import ResponseStreamEncoder
from serve_app.ingress import following
from serve_app.ingress.response_run import ResponseRun
from serve_app.ingress.routes import responses
from serve_app.ingress.streams import TokenStream
from serve_app.messages.generation import GenerateRequest
from serve_app.state import conversations, turns
from serve_app.state.connection import Operation
from serve_app.state.turns import TurnStore

KILLED = ("Generator", "Ingress", "Dialogue", "Redis")


class Small(Machine):
    total: ClassVar[History] = History()


@pytest.fixture(scope="module", autouse=True)
def _setup(tmp_path_factory: pytest.TempPathFactory) -> None:
    Small.setup = Setup(tmp_path_factory.mktemp("proof"))


def test_no_promise_is_broken_while_replicas_and_redis_are_killed() -> None:
    total = Small.total
    # Which of them a moment strikes depends on how far the others are.
    for steps in range(20261127, 20261132):
        run_state_machine_as_test(
            seed(steps)(Small),
            settings=settings(
                max_examples=10,
                stateful_step_count=60,
                phases=(Phase.generate,),
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if all(total.kills[kind] for kind in KILLED):
            break
    assert not total.violations
    assert sum(total.operations.values()) > 200
    assert all(total.kills[kind] for kind in KILLED)
    assert all(total.checks.values())


@contextmanager
def _run() -> Iterator[Machine]:
    machine = Small()
    try:
        yield machine
    finally:
        machine.run.close()


def _said(machine: Machine, **given: Any) -> Turn:
    """Have a turn said and answered."""
    options = {"place": 0, "way": "stream", "tokens": 16, "busy": None, "keyed": True} | given
    machine.say(**options)
    machine.run.settle()
    return machine.run.clients.turns[-1]


def _broken_by(machine: Machine) -> set[Promise]:
    with pytest.raises(Broken):
        machine.run.judge()
    return {violation.promise for violation in machine.run.history.violations}


def test_a_run_by_hand_breaks_nothing() -> None:
    with _run() as machine:
        assert _said(machine).outcome == "stored"
        machine.same_key_at_once(place=0, way="plain", tokens=6)
        machine.run.settle()
        machine.run.judge()


@pytest.mark.parametrize("victim", ["connection", "replica", "Redis"])
@pytest.mark.parametrize("operation", ["idempotency", "begin", "commit"])
def test_a_turn_stands_once_when_redis_answer_is_lost(victim: str, operation: Operation) -> None:
    with _run() as machine:
        machine.run.lose_answer(victim, operation)
        turn = _said(machine, tokens=40)
        for _ in range(3):
            machine.repeat(which=0)
            machine.run.settle()
        machine.run.judge()
        assert machine.run.history.lost_answers[operation] == 1
        assert turn.outcome == "stored" or machine.run.service.killed["Ingress"]


def test_whoever_cancels_and_whoever_reads_are_told_the_same_when_redis_answer_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_STEP_S", 0.05)  # else it has ended before it is cancelled
    with _run() as machine:
        for through in range(3):  # the ingress replica that makes it, and the others
            machine.say(place=0, way="stream", tokens=40, busy=None, keyed=True)
            turn = machine.run.clients.turns[-1]
            while turn.response is None:
                machine.wait(seconds=0.01)
            machine.run.lose_answer("connection", "response")
            machine.run.clients._through += through
            machine.cancel(which=0)
            machine.run.settle()
            assert turn.outcome == "cancelled"
        machine.run.judge()
        assert machine.run.history.lost_answers["response"] == 3


def test_what_is_answered_without_redis_is_not_there_when_it_had_begun_the_turn() -> None:
    with _run() as machine:
        service = machine.run.service
        service.answers.doom("begin", lambda _: service.kill_redis(back_after_s=1.3))
        machine.say_alone(tenant=0, way="stream", tokens=6, keyed=False)
        machine.run.settle()
        turn = machine.run.clients.turns[-1]
        assert turn.final is not None
        assert (turn.final["status"], turn.final["store"]) == ("incomplete", False)
        machine.run.wait_for(service.whole())
        machine.read(which=0)
        machine.run.settle()
        assert machine.run.history.outcomes["read a response", "response_not_found"] == 1
        machine.run.judge()


def test_a_reader_of_a_response_that_failed_is_told_so_when_its_turn_was_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_STEP_S", 0.05)  # else it has ended before anything dies
    with _run() as machine:
        machine.say(place=0, way="background stream", tokens=40, busy=None, keyed=True)
        turn = machine.run.clients.turns[-1]
        while not turn.tries:
            machine.wait(seconds=0.01)
        machine.wait(seconds=0.2)
        for _ in range(3):
            machine.kill(kind="Ingress", which=0, back_after_s=0.1)
        machine.run.settle()
        assert turn.outcome == "failed"
        machine.repeat(which=0)
        for behind in (3, 6, 9):
            machine.resume(which=0, behind=behind, by_id=False)
        machine.run.settle()
        while turn.outcome != "stored":
            machine.repeat(which=0)
            machine.run.settle()
        first, second = turn.tries.values()
        assert first is not None
        assert first["status"] == "failed"
        assert (turn.outcome, turn.final) == ("stored", second)
        machine.run.judge()


def test_a_turn_may_stand_behind_an_edit_whose_end_nobody_was_told() -> None:
    with _run() as machine:
        first = _said(machine)
        _said(machine)
        machine.replace(which=1, way="background", tokens=6, edit=True, busy=None)
        machine.run.settle()
        edit = machine.run.clients.turns[-1]
        assert edit.replaces is first
        latest = _said(machine)  # waits for the edit
        assert (edit.told_at, latest.outcome) == (None, "stored")
        machine.run.judge()


def test_a_tenant_that_is_not_looked_at_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with _run() as machine:
        turn = _said(machine)
        monkeypatch.setattr(responses, "tenant_of", lambda _: turn.tenant.name)
        machine.trespass(which=0, way=0)
        machine.run.settle()
        monkeypatch.undo()
        assert _broken_by(machine) == {"no tenant reads another's data"}


def test_a_key_that_is_not_looked_at_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "idempotency_key", lambda _: None)
    with _run() as machine:
        _said(machine)
        machine.repeat(which=0)
        machine.run.settle()
        assert "none is there twice under one key" in _broken_by(machine)


def test_a_turn_that_is_committed_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = TurnStore.commit

    async def twice(self: TurnStore, *args: Any, items: Any, **given: Any) -> bool:
        await commit(self, *args, items=items, **given)
        given |= {"response": f"{given['response'][:-4]}0000", "owner": "", "base": None}
        again = [replace(item, id=f"{item.id}0") for item in items]
        return await commit(self, *args, items=again, **given)

    monkeypatch.setattr(TurnStore, "commit", twice)
    with _run() as machine:
        _said(machine)
        assert "none is there twice under one key" in _broken_by(machine)


def test_a_turn_that_is_acknowledged_and_not_stored_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def not_at_all(self: ResponseRun, *_: object) -> None:
        return

    monkeypatch.setattr(ResponseRun, "_commit", not_at_all)
    with _run() as machine:
        _said(machine)
        assert "no acknowledged turn is lost" in _broken_by(machine)


def test_a_turn_that_is_taken_behind_a_deletion_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deletion = conversations.DELETE_CONVERSATION
    kept = deletion.removesuffix(deletion[deletion.rindex("drop_conversation()") :])
    monkeypatch.setattr(conversations, "DELETE_CONVERSATION", f"{kept} return {{'deleted'}}")
    with _run() as machine:
        machine.new_conversation(tenant=0, keyed=True)
        machine.run.settle()
        machine.delete_conversation(place=0)
        machine.run.settle()
        _said(machine)
        assert "what is deleted stays away" in _broken_by(machine)


def test_an_event_that_is_dropped_when_a_stream_is_resumed_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = following._left

    def without_one(record: Any, behind: int) -> list[bytes]:
        events = left(record, behind)
        return events[:1] + events[2:] if len(events) > 2 else events

    monkeypatch.setattr(following, "_left", without_one)
    with _run() as machine:
        _said(machine)
        for _ in range(3):  # through each ingress replica
            machine.resume(which=0, behind=3, by_id=False)
        machine.run.settle()
        assert "every resumed stream equals the original" in _broken_by(machine)


def test_a_stream_with_two_last_events_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    end = ResponseStreamEncoder.end

    def twice(self: ResponseStreamEncoder, response: dict[str, Any]) -> list[bytes]:
        events = end(self, response)
        return [*events, events[-1]]

    monkeypatch.setattr(ResponseStreamEncoder, "end", twice)
    with _run() as machine:
        _said(machine)
        assert "every stream has one last event" in _broken_by(machine)


def test_a_moved_reply_that_goes_on_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    request = TokenStream.request

    def forgetful(self: TokenStream, subscriber: str) -> GenerateRequest:
        asked = request(self, subscriber)
        return replace(asked, output=asked.output[:-1])

    monkeypatch.setattr(TokenStream, "request", forgetful)
    with _run() as machine:
        for way in ("stream", "plain", "background"):
            machine.say(place=0, way=way, tokens=40, busy=None, keyed=True)
        machine.wait(seconds=0.05)
        for which in (0, 0):
            machine.kill(kind="Generator", which=which, back_after_s=0.0)
            machine.wait(seconds=0.05)
        machine.run.settle()
        assert "replies are what their line calls for" in _broken_by(machine)


def test_a_turn_that_stands_beside_another_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = "if rank > 0 then return {'waits', rank} end"
    assert waiting in turns.BEGIN
    monkeypatch.setattr(turns, "BEGIN", turns.BEGIN.replace(waiting, ""))
    with _run() as machine:
        machine.two_at_once(place=0, tokens=40, busy="enqueue")
        machine.run.settle()
        assert _broken_by(machine) & {
            "turns are totally ordered",
            "replies are what their line calls for",
        }
