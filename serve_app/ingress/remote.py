"""The other deployments as the ingress calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import CommitUnknown, Overloaded, ParleyError
from serve_app.messages.dialogue import CommitTurn, PersonaView, PlanTurn, SummaryPlan, TurnPlan
from serve_app.messages.generation import GenerateRequest
from serve_app.messages.tokenization import Message, TextEncoding
from serve_app.routing.remote_call import answer_of
from serve_app.telemetry.account import Spent
from serve_app.telemetry.origin import current

__all__ = ["RemoteDialogue", "RemoteGenerator", "RemoteTokenizer"]


class RemoteDialogue:
    """The Dialogue deployment."""

    def __init__(self, handle: DeploymentHandle, *, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def plan(self, turn: PlanTurn) -> TurnPlan:
        """See `DialogueManager.plan`."""
        return await self._call("plan", replace(turn, origin=current()))

    async def commit(self, turn: CommitTurn) -> Spent | None:
        """See `DialogueManager.commit`."""
        message = (
            "No answer came when this turn was to be stored: it may have been stored. Read the "
            "conversation's items before sending it again."
        )
        unanswered = CommitUnknown(message, param="conversation")
        return await self._call("commit", replace(turn, origin=current()), unanswered=unanswered)

    async def persona(self, name: str | None) -> PersonaView:
        """See `DialogueManager.persona`."""
        return await self._call("persona", name)

    async def plan_summary(
        self, tenant: str, conversation: str, item: str, model: str
    ) -> SummaryPlan | None:
        """See `DialogueManager.plan_summary`."""
        return await self._call("plan_summary", tenant, conversation, item, model)

    async def state_reachable(self) -> bool:
        """Whether Redis answers."""
        return await self._call("state_reachable")

    async def _call(
        self, method: str, *args: Any, unanswered: ParleyError | None = None, **kwargs: Any
    ) -> Any:
        remote = getattr(self._handle, method)
        return await answer_of(
            lambda: remote.remote(*args, **kwargs),
            timeout_s=self._timeout_s,
            unanswered=unanswered,
        )


class RemoteTokenizer:
    """The Tokenizer deployment."""

    def __init__(self, handle: DeploymentHandle, *, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """See `ChatTokenizer.encode`."""
        return await self._call(
            "encode", text, add_special_tokens=add_special_tokens, origin=current()
        )

    async def encode_text(self, text: str) -> TextEncoding:
        """See `ChatTokenizer.encode_text`."""
        return await self._call("encode_text", text, origin=current())

    async def decode(self, tokens: tuple[int, ...]) -> str:
        """See `ChatTokenizer.decode`."""
        return await self._call("decode", tokens, origin=current())

    async def encode_chat(
        self, messages: tuple[Message, ...], *, add_generation_prompt: bool = True
    ) -> Any:
        """See `ChatTokenizer.encode_chat`."""
        return await self._call(
            "encode_chat",
            messages,
            add_generation_prompt=add_generation_prompt,
            origin=current(),
        )

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        remote = getattr(self._handle, method)
        return await answer_of(lambda: remote.remote(*args, **kwargs), timeout_s=self._timeout_s)


class RemoteGenerator:
    """The Generator deployment; implements `GeneratorPort`."""

    def __init__(self, handle: DeploymentHandle, *, timeout_s: float) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._timeout_s = timeout_s

    async def submit(self, request: GenerateRequest, load: Mapping[str, int]) -> Any:
        """Open a stream on the replica that routing chooses."""
        calls = self._streaming.submit.remote(request, load=load, affinity=request.affinity)
        ended = False
        try:
            with _refusals():
                async for item in calls:
                    yield item
            ended = True
        finally:
            # A call that nobody reads any more would go on at the replica.
            if not ended:
                calls.cancel()

    async def cancel(self, request_id: str, replica: str) -> None:
        """End a stream early."""
        await self._handle.cancel.remote(request_id, replica=replica)

    async def stats(self) -> dict[str, float]:
        """Return what one of the replicas says of itself."""
        stats: dict[str, float] = await answer_of(
            lambda: self._handle.stats.remote(), timeout_s=self._timeout_s
        )
        return stats


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (BackPressureError, DeploymentUnavailableError) as error:
        message = "Every generator's queue is full; try again shortly."
        raise Overloaded(message, retry_after=1.0) from error
