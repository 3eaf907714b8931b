"""A turn from both ends: what the model is asked before it, what is stored after it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from hashlib import blake2b
from typing import get_args

from serve_app.dialogue.conduct import Conduct, conduct_turn
from serve_app.dialogue.memory.facts import find_facts
from serve_app.dialogue.memory.summary import summary_request
from serve_app.dialogue.persona_planner import PersonaPlanner, PersonaPrompt
from serve_app.dialogue.personas.running import RunningPersona, RunningPersonas
from serve_app.dialogue.personas.schema import Action, text_in
from serve_app.dialogue.planner import Budget, fit, leading, plan
from serve_app.dialogue.tokenizer_port import AccountedTokenizer, TokenizerPort
from serve_app.errors import Overloaded, PersonaNotFound
from serve_app.messages.dialogue import (
    NOBODY,
    CommitTurn,
    Item,
    PersonaView,
    PlanTurn,
    SummaryPlan,
    TurnPlan,
)
from serve_app.messages.tokenization import Message
from serve_app.settings import DialogueSettings
from serve_app.state.conversations import ConversationStore
from serve_app.state.profiles import NewFact
from serve_app.state.records import StoredItem
from serve_app.state.turns import BegunTurn
from serve_app.telemetry import ledger, metrics, tracing
from serve_app.telemetry.account import Spent
from serve_app.telemetry.origin import origin_of, within

__all__ = ["DialogueManager", "ModelReader", "count_from_zero"]

logger = logging.getLogger(__name__)


def count_from_zero() -> None:
    """Make the counters of every outcome exist before the first turn."""
    for outcome in ("generated", "fixed_words"):
        metrics.TURNS.labels(outcome)
    for action in get_args(Action):
        metrics.TURN_ACTIONS.labels(action)


@dataclass(frozen=True, slots=True)
class ModelReader:
    """How a model reads what is said.

    Attributes:
        tokenizer: encodes it.
        context_length: most tokens of a prompt and its reply.
    """

    tokenizer: TokenizerPort
    context_length: int


class DialogueManager:
    """Plans and commits turns.

    Whatever touches a stored conversation raises StateUnavailable when Redis can't be reached and
    ConversationNotFound when the tenant has no such conversation; stateless turns need no Redis.

    Args:
        store: where conversations are kept.
        tokenizer: encodes them for the first model.
        settings: persona and budgets.
        context_length: most tokens of a prompt and its reply of the first model.
        further: how further models read, by their keys.
        personas: who can answer; None has nobody but the model itself.
        today: the users' day.
    """

    def __init__(
        self,
        store: ConversationStore,
        tokenizer: TokenizerPort,
        settings: DialogueSettings,
        *,
        context_length: int,
        further: Mapping[str, ModelReader] | None = None,
        personas: RunningPersonas | None = None,
        today: Callable[[], date] = date.today,
    ) -> None:
        self._store = store
        self._settings = settings
        self._personas = personas
        self._today = today
        first = ModelReader(tokenizer, context_length)
        self._readers = {
            key: ModelReader(AccountedTokenizer(reader.tokenizer), reader.context_length)
            for key, reader in {"": first, **(further or {})}.items()
        }
        self._persona_planners = {
            key: PersonaPlanner(reader.tokenizer, settings, context_length=reader.context_length)
            for key, reader in self._readers.items()
        }

    async def persona(self, name: str | None) -> PersonaView:
        """Return what is to be known of a persona where a conversation with it begins.

        Args:
            name: its name; None takes the settings', and there may be none.

        Raises:
            PersonaNotFound: there is none of that name.
            ConfigError: its file is broken.
        """
        running = await self._running(name)
        if running is None:
            return NOBODY
        persona = running.persona
        said_first = persona.greeting
        return PersonaView(
            name=persona.name,
            greeting=None if said_first is None else text_in(said_first, persona.language),
            on_busy=persona.limits.concurrent_turns,
            ttl_s=persona.memory.ttl_s,
        )

    async def plan(self, turn: PlanTurn) -> TurnPlan:
        """Return the prompt of a turn, within the context, and the time that this took.

        Raises:
            ContextLengthExceeded: what must be in the prompt doesn't fit.
            InvalidRequest: the model's chat template doesn't take these messages, or the persona's
                limits don't allow the turn.
            PersonaNotFound: no persona has the name that the turn or its conversation gives.
            Overloaded: this replica doesn't know the model, as it was started before that was deployed.
        """
        with (
            within(origin_of(turn)),
            tracing.span("dialogue.plan", "server") as span,
            ledger.recording() as recorded,
        ):
            planned = await self._plan(turn)
            logger.debug(
                "Planned a prompt of %d tokens; %d turns left out, %d go before.",
                len(planned.prompt),
                planned.turns_left_out,
                planned.waits,
            )
            if span.recording:
                span.set(_told(planned))
            return replace(planned, spent=recorded.spent())

    async def _plan(self, turn: PlanTurn) -> TurnPlan:
        reader = self._reader(turn.model)
        # Before anything is begun: a wrong name leaves nothing behind.
        running = await self._running(turn.persona) if turn.persona else None
        begun = await self._begin(turn)
        if begun.waits or begun.repeated:
            return TurnPlan(waits=begun.waits, repeated=begun.repeated)
        if running is None and turn.takes_persona:
            running = await self._running(begun.persona)
        if running is None:
            planned = await self._plan_without(turn, begun, reader)
        else:
            planned = await self._plan_with(running, turn, begun)
        metrics.TURNS.labels("generated" if planned.reply is None else "fixed_words").inc()
        metrics.TURNS_LEFT_OUT.inc(planned.turns_left_out)
        return planned

    def _reader(self, model: str) -> ModelReader:
        reader = self._readers.get(model)
        if reader is None:
            msg = "This model is still being deployed; try again shortly."
            raise Overloaded(msg, param="model", retry_after=1.0)
        return reader

    async def _plan_without(
        self, turn: PlanTurn, begun: BegunTurn, reader: ModelReader
    ) -> TurnPlan:
        history = begun.history
        asked = tuple(Message(item.role, item.content) for item in begun.asked)
        if not turn.messages:
            turn = replace(turn, messages=asked)
        messages = self._conversation(history, turn)
        affinity = turn.conversation or _common_beginning(messages)
        budget = Budget.of(
            self._settings,
            context=reader.context_length,
            max_tokens=turn.max_tokens,
            truncate=turn.truncate,
        )

        pinned = leading(messages)
        planned = fit(messages, budget, pinned=pinned)
        left_out = planned.turns_left_out
        while True:
            encoding = await reader.tokenizer.encode_chat(planned.messages)
            planned = plan(planned.messages, encoding, budget, pinned=pinned)
            if planned.turns_left_out == 0:
                return TurnPlan(
                    prompt=encoding.tokens,
                    max_tokens=planned.max_tokens,
                    turns_left_out=left_out,
                    affinity=affinity,
                    hidden=begun.hidden,
                    base=begun.base if turn.begin is not None else None,
                    asked=asked,
                )
            left_out += planned.turns_left_out

    async def commit(self, turn: CommitTurn) -> Spent:
        """Store a finished turn, once, whole or not at all, and return the time that this took.

        Raises:
            InvalidRequest: one of its items is in the conversation already.
            CommitUnknown: it may have been stored, or not.
        """
        with (
            within(origin_of(turn)),
            tracing.span("dialogue.commit", "server"),
            ledger.recording() as recorded,
        ):
            with ledger.stage("store"):
                await self._store.turns.commit(
                    turn.tenant,
                    turn.conversation,
                    response=turn.response,
                    items=[_stored(item) for item in turn.items],
                    owner=turn.owner,
                    base=turn.base,
                    record=turn.record,
                    state=turn.state,
                )
            logger.debug("Stored %d items of %s.", len(turn.items), turn.conversation)
            return recorded.spent()

    async def plan_summary(
        self, tenant: str, conversation: str, item: str, model: str = ""
    ) -> SummaryPlan | None:
        """Return what to ask the model for, so that all up to an item is summarised.

        Args:
            tenant: whose conversation it is.
            conversation: its id.
            item: id of the last item that left the prompt.
            model: key of the model that is to summarise it.

        Returns:
            None where there is nothing to summarise: it was done meanwhile, or the item is gone.
        """
        line = await self._store.summaries.line(tenant, conversation, item)
        if line is None or line.covered == len(line.items):
            return None
        new = line.items[line.covered :]
        reader = self._reader(model)
        room = reader.context_length - self._settings.summary_tokens
        for without in range(len(new)):
            encoding = await reader.tokenizer.encode_chat(
                summary_request(line.summary, new, without=without)
            )
            if len(encoding.tokens) <= room:
                return SummaryPlan(encoding.tokens, self._settings.summary_tokens, line.forgotten)
        return None

    async def _running(self, name: str | None) -> RunningPersona | None:
        """Return a persona, the settings' where none is named, or None where they name none."""
        wanted = name or self._settings.default_persona
        if wanted is None:
            return None
        if self._personas is None:
            msg = f"No persona is named {wanted[:80]!r}; there are none here."
            raise PersonaNotFound(msg, param="persona")
        # Files are read there, and intents fitted.
        return await asyncio.to_thread(self._personas.get, wanted)

    async def _plan_with(
        self, running: RunningPersona, turn: PlanTurn, begun: BegunTurn
    ) -> TurnPlan:
        asked = tuple(Message(item.role, item.content) for item in begun.asked)
        if not turn.messages:
            turn = replace(turn, messages=asked)
        conduct = await asyncio.to_thread(
            conduct_turn, running, begun.state, turn.messages, today=self._today()
        )
        metrics.TURN_ACTIONS.labels(conduct.decision.action).inc()
        explained = conduct.explained()
        planned = TurnPlan(
            affinity=turn.conversation or _common_beginning(turn.messages),
            hidden=begun.hidden if turn.begin is not None else True,
            base=begun.base if turn.begin is not None else None,
            asked=asked,
            explained=explained,
            state=conduct.state.to_json(),
            facts=self._facts(conduct, turn),
        )
        if conduct.decision.text is not None:
            return replace(planned, reply=conduct.decision.text)
        prompt = await self._persona_planners[turn.model].plan(conduct, turn, begun)
        known = prompt.remembered
        explained["remembered"] = {
            "facts": len(known.facts),
            "summary": known.summary is not None,
            "recalled": len(known.recalled),
        }
        return replace(
            planned,
            prompt=prompt.tokens,
            max_tokens=prompt.max_tokens,
            turns_left_out=prompt.turns_left_out,
            sampling=conduct.persona.sampling.model_dump(exclude_none=True),
            unsummarised=self._unsummarised(conduct, begun, prompt),
        )

    def _facts(self, conduct: Conduct, turn: PlanTurn) -> tuple[NewFact, ...]:
        """Return what the user says of themselves, where that is to be kept."""
        keeps = self._settings.profiles and conduct.persona.memory.profile
        named = turn.begin is not None and turn.begin.user
        if not (keeps and named and conduct.understanding is not None):
            return ()
        return find_facts(conduct.understanding.text)

    def _unsummarised(
        self, conduct: Conduct, begun: BegunTurn, prompt: PersonaPrompt
    ) -> str | None:
        """Return the id of the last item that left the prompt, if no summary has it."""
        if not (self._settings.summaries and conduct.persona.memory.summary):
            return None
        last = min(prompt.front + prompt.messages_left_out, len(begun.history)) - 1
        if not prompt.messages_left_out or last < 0:
            return None
        places = {item.id: place for place, item in enumerate(begun.history)}
        return begun.history[last].id if places.get(begun.summary_at or "", -1) < last else None

    async def _begin(self, turn: PlanTurn) -> BegunTurn:
        """Load what was said before a turn, and take the turn's place behind it."""
        if turn.conversation is None:
            return BegunTurn()
        with ledger.stage("load"):
            if turn.begin is not None:
                return await self._store.turns.begin(turn.tenant, turn.conversation, turn.begin)
            _, history = await self._store.load(turn.tenant, turn.conversation)
        return BegunTurn(history=history)

    def _conversation(self, history: Sequence[StoredItem], turn: PlanTurn) -> tuple[Message, ...]:
        """Return all messages, the system's first: instructions, else its own, else the persona."""
        messages = (*(Message(item.role, item.content) for item in history), *turn.messages)
        begins_with_system = bool(messages) and messages[0].role == "system"
        if turn.instructions and begins_with_system:
            # Many templates take one system message, and only at the beginning.
            both = f"{turn.instructions}\n\n{messages[0].content}"
            return (Message("system", both), *messages[1:])
        front = turn.instructions or ("" if begins_with_system else self._settings.persona)
        return (Message("system", front), *messages) if front else messages


def _told(planned: TurnPlan) -> dict[str, int | bool]:
    """Return what a span says of a plan."""
    return {
        "parley.prompt_tokens": len(planned.prompt),
        "parley.turns_left_out": planned.turns_left_out,
        "parley.turns_before": planned.waits,
        "parley.fixed_reply": planned.reply is not None,
    }


def _common_beginning(messages: Sequence[Message]) -> str:
    """Name what all requests of one stateless conversation begin with."""
    digest = blake2b(digest_size=16)
    for role in ("system", "user"):
        first = next((message.content for message in messages if message.role == role), "")
        digest.update(first.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _stored(item: Item) -> StoredItem:
    return StoredItem(item.id, item.role, item.content, item.status, item.response, item.created_at)
