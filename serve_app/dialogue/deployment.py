"""The Dialogue deployment: a shell around `DialogueManager`."""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.dialogue.manager import DialogueManager, ModelReader, count_from_zero
from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.personas.catalog import PersonaCatalog
from serve_app.dialogue.personas.running import RunningPersonas
from serve_app.errors import StateUnavailable
from serve_app.messages.dialogue import CommitTurn, PersonaView, PlanTurn, SummaryPlan, TurnPlan
from serve_app.messages.tokenization import ChatEncoding, Message
from serve_app.routing.listening import listen_on_node_address
from serve_app.routing.observing import observe_replica
from serve_app.routing.pools import FIRST, Served, served_models
from serve_app.routing.remote_call import answer_of
from serve_app.routing.serving import served_model, tokenizer_info
from serve_app.settings import Settings, parley_home
from serve_app.state.call_metrics import CallMetrics
from serve_app.state.connection import RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.state.sealing import open_seal
from serve_app.telemetry.account import Spent
from serve_app.telemetry.origin import Origin, current, within

__all__ = ["Dialogue"]

TOKENIZER_TIMEOUT_S = 25.0


class _RemoteTokenizer:
    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        encoding: ChatEncoding = await answer_of(
            lambda: self._handle.encode_chat.remote(messages, origin=current()),
            timeout_s=TOKENIZER_TIMEOUT_S,
        )
        return encoding

    async def count(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        counts: tuple[int, ...] = await answer_of(
            lambda: self._handle.count.remote(texts, origin=current()),
            timeout_s=TOKENIZER_TIMEOUT_S,
        )
        return counts


@serve.deployment(name="Dialogue")
class Dialogue:
    """Plans and commits turns."""

    def __init__(self, settings: Settings, tokenizers: Mapping[str, DeploymentHandle]) -> None:
        listen_on_node_address()
        count_from_zero()
        observe_replica("Dialogue", settings)
        readers = {
            model.key: ModelReader(_RemoteTokenizer(tokenizers[model.key]), _context(model))
            for model in served_models(settings)
        }
        first = readers.pop(FIRST)
        self._redis = RedisPool.open(settings.redis, parley_home(), CallMetrics())
        personas = RunningPersonas(
            PersonaCatalog.of(settings.dialogue), IntentStore(parley_home() / "personas")
        )
        personas.warm()
        if settings.dialogue.default_persona is not None:
            personas.get(settings.dialogue.default_persona)
        self._manager = DialogueManager(
            ConversationStore(
                self._redis,
                key_prefix=settings.redis.key_prefix,
                ttl_s=settings.dialogue.conversation_ttl_s,
                max_items=settings.dialogue.max_items,
                seal=open_seal(settings.encryption, parley_home()),
            ),
            first.tokenizer,
            settings.dialogue,
            context_length=first.context_length,
            further=readers,
            personas=personas,
        )

    async def plan(self, turn: PlanTurn) -> TurnPlan:
        """See `DialogueManager.plan`."""
        return await self._manager.plan(turn)

    async def commit(self, turn: CommitTurn) -> Spent:
        """See `DialogueManager.commit`."""
        return await self._manager.commit(turn)

    async def persona(self, name: str | None) -> PersonaView:
        """See `DialogueManager.persona`."""
        return await self._manager.persona(name)

    async def plan_summary(
        self, tenant: str, conversation: str, item: str, model: str = FIRST
    ) -> SummaryPlan | None:
        """See `DialogueManager.plan_summary`."""
        with within(Origin(conversation=conversation, tenant=tenant)):
            return await self._manager.plan_summary(tenant, conversation, item, model)

    async def state_reachable(self) -> bool:
        """Whether Redis answers."""
        try:
            await self._redis.ping()
        except StateUnavailable:
            return False
        return True

    async def check_health(self) -> None:
        """Raise when Redis is there and this replica can't get at it.

        A Redis that is away is no reason to replace it: it still serves turns without a conversation.
        """
        await self._redis.check()


def _context(model: Served) -> int:
    info = tokenizer_info(served_model(model.settings), model.settings, max_len=model.max_len)
    return info.context_length
