"""The whole service: replicas that are killed and replaced, and a Redis that is killed and started again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import SecretStr
from tokenizers import Tokenizer as TokenizerFile

from load.in_process.calls import Deployment
from load.in_process.exchange import ConnectionLost, Exchange
from load.in_process.life import Life
from load.in_process.lost_answers import LostAnswers
from load.in_process.replicas import (
    DialogueReplica,
    GeneratorReplica,
    IngressReplica,
    TokenizerReplica,
    choose_generator,
)
from serve_app.errors import StateUnavailable
from serve_app.generation.backends.base import Backend
from serve_app.generation.config import EngineConfig
from serve_app.ingress.detokenizer import TokenTable
from serve_app.messages.tokenization import TokenizerInfo
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint
from serve_app.settings import Settings
from serve_app.state.keys import KeyRing
from serve_app.state.sealing import KeyFile, Seal
from serve_app.state.server import RedisServer
from serve_app.tokenization.tokenizer import ChatTokenizer

__all__ = ["KINDS", "MODEL", "InProcessService", "Kind", "Tokens"]

logger = logging.getLogger(__name__)

Kind = Literal["Generator", "Ingress", "Dialogue", "Tokenizer"]
KINDS: tuple[Kind, ...] = ("Generator", "Ingress", "Dialogue", "Tokenizer")
MODEL = "SmolLM2-135M-Instruct"

_VOCABULARY = 49152
_EOS = 2


class Tokens:
    """The bundled model's tokens, which take a moment to load and are shared by all replicas.

    Attributes:
        info: what the model is.
        tokenizer: text to tokens.
        table: tokens to text.
    """

    def __init__(self, folder: Path, context_length: int) -> None:
        self.info = TokenizerInfo(MODEL, _VOCABULARY, context_length, (_EOS,), 1_700_000_000)
        self.tokenizer = ChatTokenizer(folder, self.info)
        self.table = TokenTable(TokenizerFile.from_file(str(folder / "tokenizer.json")))

    @classmethod
    @cache
    def bundled(cls, folder: Path, context_length: int) -> Tokens:
        """Write the bundled model's tokenizer into a folder, and load it."""
        folder.mkdir(parents=True, exist_ok=True)
        GgufCheckpoint(bundled_model()).tokenizer().write(folder)
        return cls(folder, context_length)


class InProcessService:
    """Runs in one event loop, whose tasks it must be allowed to follow (`Life.follow`).

    Args:
        folder: Redis, keys and whatever else is kept lie here.
        settings: the whole tree.
        tokens: the model's.
        backend: makes a generator's backend.
        replicas: how many of each deployment.

    Attributes:
        keys: API keys.
        redis: the server.
        answers: Redis' answers, which may be lost.
        killed: how often something of a kind was killed.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        tokens: Tokens,
        backend: Callable[[], Backend],
        replicas: Mapping[Kind, int],
    ) -> None:
        self.settings = settings
        self.keys = KeyRing.open(settings.auth, folder)
        self.redis = RedisServer(folder)
        self.answers = LostAnswers()
        self.killed: dict[str, int] = dict.fromkeys((*KINDS, "Redis"), 0)
        self._tokens = tokens
        self._backend = backend
        self._wanted = dict(replicas)
        self._config = EngineConfig.of(settings.generator, max_len=tokens.info.context_length)
        self._deployments = {kind: Deployment(kind) for kind in KINDS}
        self._deployments["Generator"] = Deployment("Generator", choose_generator)
        key_file = KeyFile(folder / "encryption.json")
        key_file.ensure()
        self._seal = Seal(key_file.read())
        self._numbers = 0
        self._lives: list[Life] = []
        self._replacing: set[asyncio.Task[None]] = set()
        self._dead: list[Any] = []
        self._url = SecretStr("")
        self._redis_is_awaited = False
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """Start Redis and all replicas."""
        self._loop = asyncio.get_running_loop()
        self._url = await asyncio.to_thread(self.redis.start)
        for kind, count in self._wanted.items():
            for _ in range(count):
                self._add(kind)

    @property
    def seal(self) -> Seal:
        """Opens what is stored."""
        return self._seal

    @property
    def url(self) -> SecretStr:
        """Where Redis is."""
        return self._url

    def deployment(self, kind: Kind) -> Deployment:
        """Return the replicas of a kind."""
        return self._deployments[kind]

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes = b"",
        through: int = 0,
    ) -> Exchange:
        """Send a request to an ingress replica.

        Args:
            method: of the request.
            path: with the query behind it.
            headers: in lower case.
            body: the whole of it.
            through: which replica, counted over those that live.

        Raises:
            ConnectionLost: none lives.
        """
        living: list[Any] = list(self._deployments["Ingress"].replicas.values())
        if not living:
            raise ConnectionLost
        ingress = living[through % len(living)]
        return Exchange(ingress.life, ingress.application, method, path, headers, body)

    def kill(self, kind: Kind, which: int = 0, *, back_after_s: float = 0.1) -> bool:
        """Kill a replica; another one takes its place in a while.

        Args:
            kind: of which deployment.
            which: counted over those that live.
            back_after_s: seconds until then.

        Returns:
            False where none lives.
        """
        living = list(self._deployments[kind].replicas.values())
        if not living:
            return False
        self.strike(kind, living[which % len(living)].life, back_after_s=back_after_s)
        return True

    def kind_of(self, life: Life) -> Kind:
        """Return the deployment of a living replica."""
        return next(kind for kind in KINDS if life.name in self._deployments[kind].replicas)

    def strike(self, kind: Kind, life: Life, *, back_after_s: float = 0.1) -> None:
        """Kill a certain replica, as `kill` does."""
        if not life.alive:
            return
        self.killed[kind] += 1
        life.end()
        self._later(self._replace(kind, back_after_s))

    def kill_redis(self, *, back_after_s: float = 0.05) -> bool:
        """Kill Redis, with -9; it is started again on its data.

        Returns:
            False where it does not run.
        """
        pid = self.redis.pid
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed["Redis"] += 1
        if not self._redis_is_awaited:
            self._redis_is_awaited = True
            self._later(self._restart_redis(back_after_s))
        return True

    async def whole(self) -> None:
        """Wait until everything that was killed has been replaced."""
        while self._replacing:
            await asyncio.gather(*self._replacing)

    async def close(self) -> None:
        """End everything; call it last, in the loop's last moments."""
        await self.whole()
        engines = [
            replica.engine
            for replica in [*self._dead, *self._deployments["Generator"].replicas.values()]
            if isinstance(replica, GeneratorReplica)
        ]
        pools = [
            replica.pool
            for kind in KINDS
            for replica in [*self._dead, *self._deployments[kind].replicas.values()]
            if isinstance(replica, IngressReplica | DialogueReplica)
        ]
        for life in self._lives:
            life.end()
        for engine in engines:
            await asyncio.to_thread(engine.stop, 0.0)
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in pools:
            with suppress(OSError):
                await pool.close()
        await asyncio.to_thread(self.redis.stop)

    def _later(self, work: Any) -> None:
        # Not through the loop: this may be called in the life that ends.
        task = asyncio.Task(work, loop=self._loop, context=Context())
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, kind: Kind, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._add(kind)

    async def _restart_redis(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        killed = -1
        while killed != self.killed["Redis"]:  # else again while it started
            killed = self.killed["Redis"]
            try:
                url = await asyncio.to_thread(self.redis.start)
                if url != self._url:
                    logger.error("Redis has started where nobody looks for it: its port was taken.")
            except StateUnavailable as error:
                if killed == self.killed["Redis"]:  # it was not killed while it started
                    logger.error("Redis has not started: %s", error.message)
                killed = -1
            except Exception:
                logger.exception("Redis can't be started.")
                raise
        self._redis_is_awaited = False

    def _add(self, kind: Kind) -> None:
        self._numbers += 1
        life = Life(f"{kind.lower()}-{self._numbers}")
        self._lives.append(life)
        replica = self._made(kind, life)
        life.at_end(lambda: self._dead.append(replica))
        self._deployments[kind].add(replica)

    def _made(self, kind: Kind, life: Life) -> Any:
        tokens, settings = self._tokens, self.settings
        match kind:
            case "Tokenizer":
                return TokenizerReplica(life, tokens.tokenizer)
            case "Generator":
                return GeneratorReplica(
                    life, self._backend(), self._config, tokens.info.eos_token_ids
                )
            case "Dialogue":
                return DialogueReplica(
                    life,
                    settings,
                    self._url,
                    self._seal,
                    self.answers,
                    self._deployments["Tokenizer"].handle(life),
                    tokens.info.context_length,
                )
            case "Ingress":
                return IngressReplica(
                    life,
                    settings,
                    self._url,
                    self._seal,
                    self.answers,
                    self.keys,
                    tokens.info,
                    tokens.table,
                    dialogue=self._deployments["Dialogue"].handle(life),
                    tokenizer=self._deployments["Tokenizer"].handle(life),
                    generator=self._deployments["Generator"].handle(life),
                )
