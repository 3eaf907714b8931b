"""Replicas of the four deployments: their own methods and parts, put together without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.types import ASGIApp

from load.in_process.calls import Handle
from load.in_process.life import Life
from load.in_process.lost_answers import LostAnswers, losing
from serve_app.dialogue import deployment as dialogue_deployment
from serve_app.dialogue.manager import DialogueManager
from serve_app.generation.backends.base import Backend
from serve_app.generation.channels import FrameChannels
from serve_app.generation.config import EngineConfig
from serve_app.generation.deployment import Generator
from serve_app.generation.engine import Engine
from serve_app.generation.stream_spans import StreamSpans
from serve_app.ingress.accounts import Accounts
from serve_app.ingress.application import build_application
from serve_app.ingress.detokenizer import TokenTable
from serve_app.ingress.edge import EdgeMiddleware
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.ingress.models import Models, ModelService
from serve_app.ingress.remembering import Remembering
from serve_app.ingress.remote import RemoteDialogue, RemoteGenerator, RemoteTokenizer
from serve_app.ingress.runs import Runs
from serve_app.ingress.services import Services
from serve_app.ingress.stores import Stores
from serve_app.messages.tokenization import TokenizerInfo
from serve_app.routing.homes import Homes, LatestKeys
from serve_app.routing.pools import FIRST
from serve_app.routing.router import rank_replicas
from serve_app.settings import Settings
from serve_app.state.connection import Operation, RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.state.keys import KeyRing
from serve_app.state.sealing import Seal
from serve_app.tokenization.deployment import Tokenizer
from serve_app.tokenization.tokenizer import ChatTokenizer

__all__ = [
    "DialogueReplica",
    "GeneratorReplica",
    "IngressReplica",
    "MortalPool",
    "TokenizerReplica",
    "choose_generator",
]

_UNARY_TIMEOUT_S = 30.0


_operation: ContextVar[Operation | None] = ContextVar("_operation", default=None)


class MortalPool(RedisPool):
    """A way to Redis that ends with a replica's life.

    Args:
        url: where Redis is.
        settings: the whole tree.
        life: the replica's.
        answers: which of Redis' answers are lost on the way.
    """

    def __init__(
        self, url: SecretStr, settings: Settings, life: Life, answers: LostAnswers
    ) -> None:
        super().__init__(url, settings.redis)
        self._life = life
        self._answers = answers
        pool = self._client.connection_pool
        pool.connection_class = losing(pool.connection_class, self._loses)

    @asynccontextmanager
    async def client(self, operation: Operation, *, bridges: bool = True) -> AsyncIterator[Redis]:
        """Lend the client to the living; see `RedisPool.client`."""
        self._life.check()
        _operation.set(operation)
        async with super().client(operation, bridges=bridges) as client:
            yield client

    def _loses(self) -> bool:
        self._life.check()
        lost = self._answers.reach(_operation.get(), self._life)
        self._life.check()  # it may have been what died
        return lost


class _Shell:
    """A deployment's class without its constructor, which needs Serve.

    Args:
        shell: the class.
        parts: the attributes that its methods read.
    """

    def __init__(self, shell: Any, **parts: Any) -> None:
        self._methods = shell.func_or_class
        self._parts = SimpleNamespace(**parts)

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._methods, name), self._parts)


class TokenizerReplica:
    """A Tokenizer replica over files that all share."""

    def __init__(self, life: Life, tokenizer: ChatTokenizer) -> None:
        self.life = life
        self.target = _Shell(Tokenizer, _tokenizer=tokenizer)


class DialogueReplica:
    """A Dialogue replica with a pool of its own."""

    def __init__(
        self,
        life: Life,
        settings: Settings,
        url: SecretStr,
        seal: Seal,
        answers: LostAnswers,
        tokenizer: Handle,
        context_length: int,
    ) -> None:
        self.life = life
        self.pool = MortalPool(url, settings, life, answers)
        store = ConversationStore(
            self.pool,
            key_prefix=settings.redis.key_prefix,
            ttl_s=settings.dialogue.conversation_ttl_s,
            max_items=settings.dialogue.max_items,
            seal=seal,
        )
        remote_tokenizer: Any = dialogue_deployment._RemoteTokenizer  # noqa: SLF001  (as deployed)
        manager = DialogueManager(
            store,
            remote_tokenizer(tokenizer),
            settings.dialogue,
            context_length=context_length,
        )
        self.target = _Shell(dialogue_deployment.Dialogue, _manager=manager, _redis=self.pool)


class GeneratorReplica:
    """A Generator replica: a real engine with its thread.

    Attributes:
        latest: the keys that it had last.
    """

    def __init__(
        self, life: Life, backend: Backend, config: EngineConfig, eos: Sequence[int]
    ) -> None:
        self.life = life
        self.engine = Engine(
            backend, config, eos_token_ids=tuple(eos), deliver=lambda frames: self._deliver(frames)
        )
        loop = asyncio.get_running_loop()
        self._channels = FrameChannels(loop, self.engine.cancel_subscriber)
        self.latest = LatestKeys()
        self.target = _Shell(
            Generator,
            _engine=self.engine,
            _channels=self._channels,
            _replica=life.name,
            _spans=StreamSpans(),
            _latest=self.latest,
        )
        self.engine.start()
        # A thread is not cancelled: its process would be gone.
        life.at_end(lambda: self.engine.drain(0.0))

    @property
    def streams(self) -> int:
        """Streams that run or wait."""
        stats = self.engine.stats()
        return stats.running + stats.waiting

    def _deliver(self, frames: Mapping[str, Any]) -> None:
        if self.life.alive:
            self._channels.deliver(frames)


def choose_generator(living: Mapping[str, GeneratorReplica], call: Mapping[str, Any]) -> str | None:
    """Route a call as `GeneratorRouter` does."""
    if "replica" in call:
        return call["replica"] if call["replica"] in living else None
    told: Mapping[str, int] = call.get("load", {})
    counts = {name: max(told.get(name, 0), one.streams) for name, one in living.items()}
    affinity = call.get("affinity")
    latest = ((name, one.latest.told()) for name, one in living.items())
    home = Homes().find(affinity, latest) if affinity else None
    return rank_replicas(list(living), affinity, counts, home)[0]


class IngressReplica:
    """An Ingress replica: the application behind the edge, and all that it calls.

    Attributes:
        application: takes requests.
        client: its streams.
        runs: the responses that it is making.
    """

    def __init__(
        self,
        life: Life,
        settings: Settings,
        url: SecretStr,
        seal: Seal,
        answers: LostAnswers,
        keys: KeyRing,
        info: TokenizerInfo,
        table: TokenTable,
        *,
        dialogue: Any,
        tokenizer: Any,
        generator: Any,
    ) -> None:
        self.life = life
        self.pool = MortalPool(url, settings, life, answers)
        generators = RemoteGenerator(generator, timeout_s=_UNARY_TIMEOUT_S)
        self.client = GeneratorClient(
            generators,
            silence_s=settings.ingress.generator_silence_s,
            max_moves=settings.ingress.max_moves,
            admission_s=settings.ingress.admission_timeout_s,
        )
        stores = Stores.over(self.pool, settings, seal, owner=self.client.subscriber)
        remote_dialogue = RemoteDialogue(dialogue, timeout_s=_UNARY_TIMEOUT_S)
        model = ModelService(
            key=FIRST,
            info=info,
            table=table,
            tokenizer=RemoteTokenizer(tokenizer, timeout_s=_UNARY_TIMEOUT_S),
            generators=self.client,
            generator_stats=generators,
            pools=("Generator",),
        )
        models = Models([model])
        services = Services(
            settings=settings,
            models=models,
            owner=self.client.subscriber,
            dialogue=remote_dialogue,
            keys=keys,
            stores=stores,
            remembering=Remembering(models, remote_dialogue, stores),
            accounts=Accounts(stores.accounts, kept=settings.accounts.kept),
        )
        self.runs = Runs(services)
        application = build_application(services, self.runs)
        self.application: ASGIApp = EdgeMiddleware(application, settings.ingress)
