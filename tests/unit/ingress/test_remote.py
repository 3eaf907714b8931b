"""Calls to generators as Serve's handles make them: none goes on that nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.errors import (
    CommitUnknown,
    InvalidRequest,
    Overloaded,
    ParleyError,
    StateUnavailable,
)
from serve_app.ingress.remote import RemoteDialogue, RemoteGenerator
from serve_app.messages.dialogue import CommitTurn
from serve_app.messages.generation import Admitted, Frame, GenerateRequest, SamplingParams

REQUEST = GenerateRequest(
    "r", "x", 1, (1,), SamplingParams(max_tokens=1, seed=1), affinity="somebody"
)


class Calls:
    """What a streaming handle returns: an iterator that can be cancelled."""

    def __init__(self, *items: Any) -> None:
        self._items = list(items)
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self._items:
            raise StopAsyncIteration
        item = self._items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.submit = SimpleNamespace(remote=self._submit)
        self.asked: dict[str, Any] = {}

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    def _submit(self, request: GenerateRequest, **routing: Any) -> Calls:
        self.asked = routing
        return self.calls


def submit(calls: Calls) -> AsyncIterator[Admitted | Frame]:
    handle: Any = Handle(calls)
    return RemoteGenerator(handle, timeout_s=1).submit(REQUEST, {"a": 2})


async def test_a_call_that_ends_is_not_cancelled() -> None:
    calls = Calls(Admitted("a", carries_frames=True), Frame())
    assert [item async for item in submit(calls)] == [Admitted("a", carries_frames=True), Frame()]
    assert not calls.cancelled


async def test_a_call_that_nobody_reads_any_more_is_cancelled() -> None:
    calls = Calls(Admitted("a", carries_frames=True), Frame())
    reading = submit(calls)
    await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]
    assert calls.cancelled


async def test_routing_gets_load_and_affinity() -> None:
    handle: Any = Handle(Calls())
    assert [
        item async for item in RemoteGenerator(handle, timeout_s=1).submit(REQUEST, {"a": 2})
    ] == []
    assert handle.asked == {"load": {"a": 2}, "affinity": "somebody"}


@pytest.mark.parametrize("full", [BackPressureError, DeploymentUnavailableError])
async def test_serves_own_refusals_are_overloads(full: type[Exception]) -> None:
    error = full.__new__(full)
    with pytest.raises(Overloaded) as caught:
        await anext(submit(Calls(error)))
    assert caught.value.retry_after


TURN = CommitTurn("acme", "conv_1", "resp_1", ())
FULL = BackPressureError.__new__(BackPressureError)


class CommitHandle:
    """A dialogue deployment that meets each commit with the next outcome, or with silence."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self._outcomes = list(outcomes)
        self.commit = SimpleNamespace(remote=self._commit)

    async def _commit(self, turn: CommitTurn) -> None:
        assert turn == TURN
        if not self._outcomes:
            await asyncio.Event().wait()
        elif (outcome := self._outcomes.pop(0)) is not None:
            raise outcome


def commit(*outcomes: Exception | None, timeout_s: float = 20.0) -> Any:
    handle: Any = CommitHandle(*outcomes)
    return RemoteDialogue(handle, timeout_s=timeout_s).commit(TURN)


async def test_a_commit_is_repeated_when_the_replica_dies_with_it() -> None:
    await commit(ActorDiedError(), None)


@pytest.mark.parametrize(
    "outcomes",
    [
        (),
        (ActorDiedError(), FULL),
        (ActorDiedError(), StateUnavailable("away")),
        (ActorDiedError(),) * 4,
    ],
    ids=["silence", "then full", "then without Redis", "again and again"],
)
async def test_a_commit_that_may_have_happened_is_not_called_a_failure(
    outcomes: tuple[Exception, ...],
) -> None:
    with pytest.raises(CommitUnknown, match="may have been stored"):
        await commit(*outcomes, timeout_s=20.0 if outcomes else 0.05)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (FULL, Overloaded),
        (StateUnavailable("away"), StateUnavailable),
        (InvalidRequest("twice"), InvalidRequest),
    ],
)
async def test_a_refused_commit_keeps_its_reason(
    refusal: Exception, told: type[ParleyError]
) -> None:
    with pytest.raises(told):
        await commit(refusal)
