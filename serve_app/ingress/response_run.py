"""One response while it is made, apart from whoever reads it.

A run is a task of its own. A stored response's run goes on when its reader leaves, can be read by
others from any event on, and ends on its own, by being cancelled, or by losing its lease; whichever
it is, it ends in one event. What is not stored ends with its reader.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from serve_app.api.account import account_object
from serve_app.api.errors import as_parley_error
from serve_app.api.ids import message_id
from serve_app.api.items import new_items
from serve_app.api.reply import Extras, Reply, Usage
from serve_app.api.response_object import ResponseObject
from serve_app.api.response_stream import ResponseStreamEncoder
from serve_app.errors import ClientGone, ParleyError, ResponseCancelled, StateUnavailable
from serve_app.ingress.asked import Asked
from serve_app.ingress.event_log import EventLog
from serve_app.ingress.inference_span import Inference
from serve_app.ingress.replies import Generation
from serve_app.ingress.services import Services, random_seed
from serve_app.messages.dialogue import CommitTurn, Item, PlanTurn, TurnPlan
from serve_app.messages.generation import FinishReason, GenerateRequest
from serve_app.state.keyspace import new_response_id
from serve_app.state.records import Record
from serve_app.state.turns import TurnBegin, cancelled, lost
from serve_app.telemetry.origin import current, detached, named
from serve_app.telemetry.outcomes import count_error
from serve_app.telemetry.tracing import takes_text

__all__ = ["ResponseRun"]

logger = logging.getLogger("ray.serve")

_FIRST_PAUSE_S = 0.03
_LONGEST_PAUSE_S = 0.5


class ResponseRun:
    """Makes one response.

    Args:
        services: what the replica has at hand.
        asked: what is asked for.
        over: called when the run is over.

    Attributes:
        asked: what is asked for.
        account: of the request that asked.
        final: the response as it ended, once it has.
        error: why it failed, if it has.
    """

    def __init__(
        self, services: Services, asked: Asked, *, over: Callable[[ResponseRun], None]
    ) -> None:
        self.asked = asked
        self._log = EventLog()
        self.final: dict[str, Any] | None = None
        self.error: ParleyError | None = None
        self._services = services
        self._model = services.models.of(asked.model)
        self._tell_over = over
        self._generation: Generation = services.generation()
        self.account = self._generation.account
        self.account.begin("responses", asked.response, self._model.name)
        self.account.hold()
        self._base: str | None = None
        self._state: dict[str, Any] | None = None
        self._begun = False
        self._reason = ""
        self._streamed = False
        self._settling = False
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._set_stored(asked)
        # A context of its own: Serve cancels what was called on behalf of a request whose client has
        # left, and this goes on.
        self._task = asyncio.get_running_loop().create_task(
            self._run(), context=detached(current())
        )
        self._inner: asyncio.Task[None] | None = None

    @property
    def tenant(self) -> str:
        """Whose response it is."""
        return self.asked.tenant

    @property
    def response(self) -> str:
        """The response's id."""
        return self.asked.response

    @property
    def events(self) -> list[bytes]:
        """All events that there are by now, encoded."""
        return self._log.events

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._log.over

    @property
    def outlives_reader(self) -> bool:
        """Whether it goes on when nobody reads it."""
        return self.asked.stored

    async def accepted(self) -> None:
        """Wait until the response can be told of.

        Raises:
            ParleyError: it was refused, and leaves nothing behind.
        """
        await asyncio.shield(self._accepted)

    def read(self, behind: int = 0) -> AsyncIterator[bytes]:
        """Return the events behind the first so many, as they come, several as one piece."""
        self._streamed = True
        return self._log.read(behind)

    async def ended(self) -> dict[str, Any]:
        """Wait for the end and return the response.

        Raises:
            ParleyError: it failed.
        """
        await self._log.closed()
        if self.final is None or self.final["status"] == "failed":
            raise self.error or lost()
        return self.final

    def snapshot(self) -> dict[str, Any]:
        """Return the response as it stands now."""
        if self.final is not None:
            return self.final
        waits = self.asked.request.background and not self._encoder.began
        return self._object.queued() if waits else self._object.in_progress()

    def take(self, behind: int) -> list[bytes]:
        """Return the events behind the first so many."""
        return self.events[behind:]

    def end(self, reason: str) -> None:
        """End it early: `cancel`, `interrupt`, `lost` when it was taken away, `left` by its reader."""
        # Once the turn is on its way to be stored, it is too late for anything else.
        if self._reason or self._settling:
            return
        self._reason = reason
        if self._inner is not None:
            self._inner.cancel()

    async def wait(self) -> None:
        """Wait until it is over."""
        await asyncio.shield(self._task)

    def _set_stored(self, asked: Asked) -> None:
        request = asked.request
        self._input = new_items(
            request.to_messages(), created=asked.created, response=asked.response
        )
        self._object = ResponseObject.new(
            request,
            response=asked.response,
            item=message_id(),
            model=self._model.name,
            created=asked.created,
            stored=asked.stored,
            defaults=self._services.sampling_defaults,
        )
        self._encoder = ResponseStreamEncoder(self._object)

    async def _run(self) -> None:
        self._inner = asyncio.create_task(self._make())
        if self._reason:
            self._inner.cancel()
        error: ParleyError | None = None
        try:
            await self._inner
        except asyncio.CancelledError:
            error = self._early_end()
        except Exception as broken:
            error = as_parley_error(broken)
            if type(error) is ParleyError and self._accepted.done():  # nothing anybody foresaw
                logger.exception("A response broke.")
        finally:
            self._generation.close()
        try:
            if error is not None:
                await self._fail(error)
        finally:
            self._services.stores.journal.forget(self.response)
            self.account.error = None if error is None else error.code
            self.account.release()
            if not self._accepted.done():
                self._accepted.set_exception(error or lost())
                self._accepted.exception()  # whoever asked may be gone
            self._log.close()
            self._tell_over(self)

    def _early_end(self) -> ParleyError:
        match self._reason:
            case "cancel" | "interrupt":
                return cancelled(self._reason)
            case "lost":
                return lost()
            case _:
                return ClientGone("The request was cancelled before the reply was done.")

    async def _make(self) -> None:
        with ExitStack() as place:
            await self._make_in(place)

    async def _make_in(self, place: ExitStack) -> None:
        """Make it.

        Args:
            place: holds its place at a generator for as long as it is on its way there.
        """
        request, generation = self.asked.request, self._generation
        async with generation.in_time(request.timeout):
            plan = await self._planned(place)
        if plan.repeated:
            await self._repeat()
            return
        self._base = plan.base
        if plan.asked and not self._input:
            self._input = new_items(plan.asked, created=self.asked.created, response=self.response)
        self._state = plan.state
        self._object.add(
            Extras(turns_left_out=plan.turns_left_out, explained=plan.explained),
            None if plan.hidden else self.asked.place,
        )
        if plan.reply is None:
            reply, usage = await self._generated(plan, place)
        else:
            reply, usage = self._fixed(plan.reply)
        final = self._encoder.finished(reply.reason, usage, completed_at=int(time.time()))
        self._settling = True
        if self.asked.joins:
            await self._commit(reply, final)
        elif self._begun:
            await self._services.stores.responses.abandon(self.tenant, self.response, self._owner)
        self._conclude(final)
        if self.asked.joins:
            self._remember(plan)

    async def _generated(self, plan: TurnPlan, place: ExitStack) -> tuple[Reply, Usage]:
        """Have the model write the reply, publishing it as it comes."""
        generation, request = self._generation, self.asked.request
        with self.account.stage("submit"):
            asked = self._generate_request(plan)
        said = (request.to_messages() or plan.asked) if takes_text() else ()
        inference = Inference("chat", self._model.name, said, request.stream, request.stop)
        await generation.open(self._model, [asked], request.stop, inference)
        place.close()
        self._log.publish(self._encoder.start())
        self._accept()
        async for _, deltas in generation.deltas():
            if deltas is not None:
                encode = self._encoder.delta
                self._log.publish([encode(delta.text, delta.logprobs or ()) for delta in deltas])
        reply = generation.choices[0].reply
        if reply is None:
            raise lost()
        return reply, generation.usage()

    def _fixed(self, words: str) -> tuple[Reply, Usage]:
        """Publish a reply of fixed words, which costs no tokens."""
        self.account.generated(time.perf_counter())
        self._log.publish([*self._encoder.start(), self._encoder.delta(words)])
        self._accept()
        return Reply(words, FinishReason.STOP), Usage(0, 0, 0)

    def _remember(self, plan: TurnPlan) -> None:
        """Have done in the background what the memory needs, now that the turn is stored."""
        asked, remembering = self.asked, self._services.remembering
        if (user := asked.request.user_name) is not None:
            remembering.learn(asked.tenant, user, plan.facts, response=asked.response)
        if plan.unsummarised is not None and asked.place is not None:
            remembering.summarise(asked.tenant, asked.place, plan.unsummarised, asked.model)

    async def _planned(self, place: ExitStack) -> TurnPlan:
        place.enter_context(self._model.generators.promise())
        pause = _FIRST_PAUSE_S
        while (plan := await self._plan()).waits:
            place.close()  # others need it meanwhile
            self._wait_in_background()
            with self.account.stage("turn"):
                await asyncio.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)
        return plan

    async def _plan(self) -> TurnPlan:
        asked, request = self.asked, self.asked.request
        turn = PlanTurn(
            tenant=asked.tenant,
            messages=request.to_messages(),
            conversation=asked.place,
            instructions=request.instructions,
            max_tokens=request.token_limit,
            truncate=request.truncation == "auto",
            begin=self._begin(),
            persona=request.persona,
            takes_persona=True,
            model=asked.model,
        )
        try:
            plan = await self._plan_for(turn)
        except StateUnavailable:
            if not self._may_go_unstored():
                raise
            self._go_unstored()
            return await self._plan_for(replace(turn, conversation=None, begin=None))
        if turn.begin is not None and not self._begun:
            self._begun = True
            self._services.stores.journal.keep(self, events=asked.stored)
        if request.background and not plan.waits:
            self._wait_in_background()
        return plan

    async def _plan_for(self, turn: PlanTurn) -> TurnPlan:
        with self.account.hop("plan") as hop:
            plan = await self._services.dialogue.plan(turn)
            hop.answered(plan)
        return plan

    def _begin(self) -> TurnBegin | None:
        asked, request = self.asked, self.asked.request
        if asked.place is None:
            return None
        settings = self._services.settings.responses
        return TurnBegin(
            response=asked.response,
            owner=self._owner,
            lease_s=settings.lease_s,
            on_busy=(request.on_busy or settings.on_busy) if asked.joins else "",
            max_queued=settings.max_queued_turns,
            follows=request.previous_response_id,
            replaces=request.replaces,
            draft=self._record(self.snapshot()) if asked.stored else None,
            user=request.user_name,
            claim=asked.claim,
            new=not (request.previous_response_id or request.replaces or request.conversation),
            chosen=request.on_busy is not None,
            persona=request.persona or self._services.settings.dialogue.default_persona,
            model=request.model,
            again=self._begun,
        )

    def _may_go_unstored(self) -> bool:
        """Whether all that ties the request to Redis is that responses are kept by default."""
        request = self.asked.request
        other = request.conversation or request.previous_response_id or request.replaces
        chosen = request.store or request.background or self.asked.claim
        return not (other or chosen or self._begun)

    def _go_unstored(self) -> None:
        """Answer without Redis, under a new id: it may have the beginning of the other one all the same."""
        self.asked = replace(self.asked, response=new_response_id(), stored=False, place=None)
        self.account.request = self.response
        named(request=self.response)
        self._set_stored(self.asked)

    @property
    def _owner(self) -> str:
        return self._services.owner

    def _generate_request(self, plan: TurnPlan) -> GenerateRequest:
        request, services = self.asked.request, self._services
        defaults = replace(services.sampling_defaults, **plan.sampling)
        self._object.sampled_by(request, defaults)
        return GenerateRequest(
            request_id=self.response,
            subscriber="",
            stream=0,
            prompt=plan.prompt,
            sampling=request.sampling(
                max_tokens=plan.max_tokens,
                vocab_size=self._model.info.vocab_size,
                defaults=defaults,
                seed=random_seed(),
            ),
            priority=request.priority,
            affinity=plan.affinity,
        )

    def _accept(self) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def _wait_in_background(self) -> None:
        if self.asked.request.background and not self.events:
            self._log.publish(self._encoder.queued())
            self._accept()

    def _record(self, response: dict[str, Any]) -> Record:
        """Return what is stored of the response: enough to make its events again."""
        return {
            "response": response,
            "item": self._object.item,
            "input": [asdict(item) for item in self._input],
            "began": self._encoder.began,
            "cuts": self._encoder.cuts,
        }

    async def _commit(self, reply: Reply, final: dict[str, Any]) -> None:
        """Store the turn before anybody is told that it is done."""
        cut = reply.reason is not FinishReason.STOP
        answer = Item(
            id=self._object.item,
            role="assistant",
            content=reply.text,
            status="incomplete" if cut else "completed",
            response=self.response,
            created_at=int(time.time()),
        )
        turn = CommitTurn(
            tenant=self.tenant,
            conversation=self.asked.place or "",
            response=self.response,
            items=(*self._input, answer),
            owner=self._owner,
            base=self._base,
            record=self._record(final) if self.asked.stored else None,
            state=self._state,
        )
        with self.account.hop("commit") as hop:
            hop.answered(await self._services.dialogue.commit(turn))

    async def _repeat(self) -> None:
        """Tell again what an earlier run of the same response has stored."""
        record = await self._services.stores.responses.get(self.tenant, self.response)
        self.final = record["response"]
        self._log.replay(ResponseStreamEncoder.replay(record))
        self._accept()

    async def _fail(self, error: ParleyError) -> None:
        self.error = error
        responses = self._services.stores.responses
        if not self._accepted.done():
            if self._begun:
                await self._settle(responses.abandon(self.tenant, self.response, self._owner))
            return
        if self._streamed or self.asked.request.background:
            count_error(error)
        ended_by_someone = isinstance(error, ResponseCancelled)
        text = self._encoder.text
        final = self._encoder.cancelled() if ended_by_someone else self._encoder.failed(error)
        unkept: ParleyError | None = None
        if self.asked.joins and self._reason == "interrupt" and text:
            # What was heard before the interruption was said, as far as the next turn goes.
            reply = Reply(text, FinishReason.CANCELLED)
            unkept = await self._settle(self._commit(reply, final))
        elif self.asked.stored:
            record = self._record(final)
            unkept = await self._settle(
                responses.conclude(self.tenant, self.response, self._owner, record)
            )
        elif self._begun:
            await self._settle(responses.abandon(self.tenant, self.response, self._owner))
        if unkept is not None and ended_by_someone:
            # Whoever asks later will be told that it was lost: nobody may hear that it was cancelled.
            final = self._encoder.failed(unkept)
        self._conclude(final)

    async def _settle(self, work: Awaitable[bool | None]) -> ParleyError | None:
        """Tell Redis of an end, and return why it isn't kept; the lease runs out then."""
        try:
            kept = await work
        except Exception as broken:  # noqa: BLE001  (whatever it is, readers are told an end)
            error = as_parley_error(broken)
            what = type(broken).__name__
            logger.warning("How %s ended could not be stored: %s", self.response, what)
            return error
        return lost() if kept is False else None

    def _conclude(self, final: dict[str, Any]) -> None:
        self.final = final
        if self.asked.request.include_timing:
            timing = account_object(self.account.snapshot())
            final = final | {"parley": final["parley"] | {"timing": timing}}
        self._log.publish(self._encoder.end(final))
