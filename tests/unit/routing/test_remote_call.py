"""Calls that may be made twice: what is tried again, what is passed on, and when they give up."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.errors import ConversationNotFound, Overloaded, ParleyError
from serve_app.routing import remote_call
from serve_app.routing.remote_call import TRIES, answer_of

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_call, "FIRST_PAUSE_S", 0.0)


class Call:
    """Ends as it is told to, one time after the other."""

    def __init__(self, *ends: Exception | str) -> None:
        self._ends = list(ends)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        end = self._ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


async def test_a_call_is_made_again_when_its_replica_dies() -> None:
    call = Call(*[RayActorError()] * (TRIES - 1), "answer")
    assert await answer_of(call, timeout_s=PATIENCE_S) == "answer"
    assert call.made == TRIES


async def test_replicas_that_die_again_and_again_are_a_busy_service() -> None:
    call = Call(*[RayActorError()] * (TRIES + 1))
    with pytest.raises(Overloaded) as refused:
        await answer_of(call, timeout_s=PATIENCE_S)
    assert call.made == TRIES
    assert refused.value.retry_after == 1.0
    assert isinstance(refused.value.__cause__, RayActorError)


@pytest.mark.parametrize(
    "error",
    [
        BackPressureError(num_queued_requests=9, max_queued_requests=8),
        DeploymentUnavailableError(DeploymentID("Dialogue", "parley")),
    ],
)
async def test_a_full_queue_or_a_missing_deployment_is_not_tried_again(error: Exception) -> None:
    call = Call(error)
    with pytest.raises(Overloaded):
        await answer_of(call, timeout_s=PATIENCE_S)
    assert call.made == 1


@pytest.mark.parametrize("error", [ConversationNotFound("None."), Overloaded("Full."), OSError()])
async def test_what_the_deployment_refuses_with_passes_through(error: Exception) -> None:
    call = Call(error)
    with pytest.raises(type(error)) as refused:
        await answer_of(call, timeout_s=PATIENCE_S)
    assert refused.value is error
    assert call.made == 1


async def test_a_refusal_of_the_second_try_passes_through_too() -> None:
    refusal = ConversationNotFound("None.")
    with pytest.raises(ParleyError) as refused:
        await answer_of(Call(RayActorError(), refusal), timeout_s=PATIENCE_S)
    assert refused.value is refusal


async def test_a_call_that_is_not_answered_in_time_is_given_up_and_cancelled() -> None:
    cancelled = asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(Overloaded) as refused:
        await answer_of(never, timeout_s=0.01)
    assert cancelled.is_set()
    assert refused.value.retry_after == 1.0


async def test_the_time_limit_holds_for_all_tries_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_call, "FIRST_PAUSE_S", PATIENCE_S)
    call = Call(RayActorError(), "too late")
    with pytest.raises(Overloaded):
        await answer_of(call, timeout_s=0.01)
    assert call.made == 1


async def test_a_caller_who_leaves_is_not_told_of_a_busy_service() -> None:
    begun = asyncio.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    waiting = asyncio.create_task(answer_of(never, timeout_s=PATIENCE_S))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
