"""The whole service in one process, without Ray: real HTTP in front, real engines behind.

Everything is real but Serve. What stands for it here does what the ingress relies on: calls to a
generator run on at the replica whether or not anybody reads, a request whose client has left is
cancelled together with the calls made on its behalf, and the calls of a replica that dies break.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import openai
import uvicorn
from pydantic import SecretStr
from ray.exceptions import RayActorError
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tokenizers import Tokenizer as TokenizerFile

from serve_app.dialogue.manager import DialogueManager, ModelReader
from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.personas.catalog import PersonaCatalog
from serve_app.dialogue.personas.running import RunningPersonas
from serve_app.errors import StateUnavailable
from serve_app.generation.backends.base import Backend
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.channels import FrameChannels
from serve_app.generation.deployment import Generator
from serve_app.generation.engine import Engine, EngineConfig
from serve_app.generation.stream_spans import StreamSpans
from serve_app.ingress.accounts import Accounts
from serve_app.ingress.application import build_application
from serve_app.ingress.detokenizer import TokenTable
from serve_app.ingress.early_refusal import EarlyRefusal
from serve_app.ingress.edge import EdgeMiddleware
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.ingress.models import Models, ModelService
from serve_app.ingress.remembering import Remembering
from serve_app.ingress.runs import Runs
from serve_app.ingress.services import Services
from serve_app.ingress.stores import Stores
from serve_app.messages.dialogue import CommitTurn, PlanTurn, TurnPlan
from serve_app.messages.generation import Admitted, Frame, GenerateRequest
from serve_app.messages.tokenization import ChatEncoding, TextEncoding, TokenizerInfo
from serve_app.messages.tokenization import Message as ChatMessage
from serve_app.routing.homes import Homes
from serve_app.routing.pools import FIRST
from serve_app.routing.router import rank_replicas
from serve_app.settings import Settings
from serve_app.state.call_metrics import CallMetrics
from serve_app.state.connection import RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.state.keys import KeyRing
from serve_app.state.sealing import KeyFile, Seal
from serve_app.telemetry.account import Spent
from serve_app.telemetry.origin import current
from serve_app.tokenization.deployment import Tokenizer
from serve_app.tokenization.tokenizer import ChatTokenizer

MODEL = "SmolLM2-135M-Instruct"
VOCAB = 49152
EOS = 2
NO_REDIS = SecretStr("redis://127.0.0.1:1/0")
PATIENCE_S = 60.0

Result = TypeVar("Result")
_Shell: Any = Generator.func_or_class  # type: ignore[attr-defined]
_TokenizerShell: Any = Tokenizer.func_or_class  # type: ignore[attr-defined]

_request: ContextVar[object | None] = ContextVar("request", default=None)
_calls_of: dict[object, list[asyncio.Task[None]]] = {}


def wait_until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in time"
        time.sleep(0.005)


class Replica:
    """One generator replica: a real engine, real channels and the deployment's own `submit`.

    Attributes:
        alive: False once it has died.
        silent: set it, and nothing of what its calls yield arrives any more.
        admitting: clear it on the service's loop, and calls wait before they are looked at.
        cancellations: ids of the requests that it was asked to cancel.
        calls: the open ones.
    """

    def __init__(self, name: str, backend: Backend, config: EngineConfig) -> None:
        self.name = name
        self.alive = True
        self.silent = False
        self.admitting = asyncio.Event()
        self.admitting.set()
        self.cancellations: list[str] = []
        self.calls: set[asyncio.Task[None]] = set()
        self.engine = Engine(
            backend,
            config,
            eos_token_ids=(EOS,),
            deliver=lambda frames: _Shell._deliver(self._shell, frames),
        )
        self.spans = StreamSpans()
        self.channels = FrameChannels(
            asyncio.get_running_loop(), lambda subscriber: self.engine.cancel_subscriber(subscriber)
        )
        self.engine.start()
        self._shell = SimpleNamespace(
            _engine=self.engine,
            _channels=self.channels,
            _spans=self.spans,
            _replica=name,
            _settings=None,
        )

    @property
    def streams(self) -> int:
        stats = self.engine.stats()
        return stats.running + stats.waiting

    async def submit(self, request: GenerateRequest) -> AsyncIterator[Admitted | Frame]:
        """Run the call on its own and hand out what it yields."""
        if not self.alive:
            raise RayActorError
        items: asyncio.Queue[Any] = asyncio.Queue()

        async def call() -> None:
            await self.admitting.wait()
            generator = _Shell.submit(self._shell, request, load={}, affinity=None)
            try:
                async for item in generator:
                    if not self.silent:
                        items.put_nowait(item)
                items.put_nowait(StopAsyncIteration())
            except asyncio.CancelledError:
                items.put_nowait(RayActorError())
                raise
            except Exception as error:  # noqa: BLE001  (it goes to the caller, as with Serve)
                items.put_nowait(error)
            finally:
                await generator.aclose()

        task = asyncio.create_task(call())
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        _calls_of.setdefault(_request.get(), []).append(task)
        try:
            while not isinstance(item := await items.get(), Exception):
                yield item
            if not isinstance(item, StopAsyncIteration):
                raise item
        finally:
            task.cancel()

    def cancel(self, request_id: str) -> None:
        self.cancellations.append(request_id)
        self.engine.cancel(request_id)

    def die(self) -> None:
        """Break every call at once and take no more."""
        self.alive = False
        for task in list(self.calls):
            task.cancel()


class Generators:
    """The generator deployment: routes as the real router does."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = list(replicas)
        self.requests: list[GenerateRequest] = []
        self.placed: list[str] = []
        self._homes = Homes()

    async def submit(
        self, request: GenerateRequest, load: Mapping[str, int]
    ) -> AsyncIterator[Admitted | Frame]:
        self.requests.append(request)
        living = {replica.name: replica for replica in self.replicas if replica.alive}
        if not living:
            raise RayActorError
        counts = {name: max(load.get(name, 0), it.streams) for name, it in living.items()}
        home = self._homes.find(request.affinity, []) if request.affinity else None
        name = rank_replicas(list(living), request.affinity, counts, home)[0]
        self.placed.append(name)
        if request.affinity:
            self._homes.remember(request.affinity, name)
        async for item in living[name].submit(request):
            yield item

    async def cancel(self, request_id: str, replica: str) -> None:
        for known in self.replicas:
            if known.name == replica:
                known.cancel(request_id)

    async def stats(self) -> dict[str, float]:
        stats = self.replicas[0].engine.stats()
        return {"running": stats.running, "waiting": stats.waiting, "slots": stats.slots}


class Dialogue(DialogueManager):
    """The dialogue deployment; `before_plan` can fail in a plan's place."""

    pool: RedisPool
    before_plan: Callable[[], None] = staticmethod(lambda: None)

    async def plan(self, turn: PlanTurn) -> TurnPlan:
        self.before_plan()
        # As from another process: all that the manager knows is what it is told.
        told = replace(turn, origin=current())
        work = super().plan(told)
        return await asyncio.get_running_loop().create_task(work, context=Context())

    async def commit(self, turn: CommitTurn) -> Spent:
        told = replace(turn, origin=current())
        work = super().commit(told)
        return await asyncio.get_running_loop().create_task(work, context=Context())

    async def state_reachable(self) -> bool:
        try:
            await self.pool.ping()
        except StateUnavailable:
            return False
        return True


class AsyncTokenizer:
    """The tokenizer deployment."""

    def __init__(self, real: ChatTokenizer) -> None:
        self.real = real
        self._shell = SimpleNamespace(_tokenizer=real)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        return await self._call("encode", text, add_special_tokens=add_special_tokens)

    async def encode_text(self, text: str) -> TextEncoding:
        return await self._call("encode_text", text)

    async def decode(self, tokens: tuple[int, ...]) -> str:
        return await self._call("decode", tokens)

    async def count(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        return await self._call("count", texts)

    async def encode_chat(
        self, messages: tuple[ChatMessage, ...], *, add_generation_prompt: bool = True
    ) -> ChatEncoding:
        return await self._call(
            "encode_chat", messages, add_generation_prompt=add_generation_prompt
        )

    async def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call the deployment's own method, as from another process: all it knows is what it is told."""
        call = getattr(_TokenizerShell, method)(self._shell, *args, **options, origin=current())
        return await asyncio.get_running_loop().create_task(call, context=Context())


class LikeServe:
    """Cancels a request when its client leaves, and every call made in its context; names requests.

    Attributes:
        seen: the requests, as they come from the edge.
        cancelled: how many of them were cancelled, and are over.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.seen: list[Scope] = []
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        name = (b"x-request-id", uuid.uuid4().hex.encode())
        scope = {**scope, "headers": [*scope["headers"], name]}
        messages: asyncio.Queue[Message] = asyncio.Queue()
        answered = False

        async def fetch() -> None:
            while True:
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    return

        async def watched_send(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], name]}
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body")

        this = object()
        _request.set(this)
        fetching = asyncio.create_task(fetch())
        request = asyncio.create_task(self._app(scope, messages.get, watched_send))
        try:
            await asyncio.wait({fetching, request}, return_when=asyncio.FIRST_COMPLETED)
            if not request.done() and not answered:
                request.cancel()
                for call in _calls_of.get(this, ()):
                    call.cancel()
            try:
                await request
            except asyncio.CancelledError:
                self.cancelled += 1
        finally:
            fetching.cancel()
            _calls_of.pop(this, None)


class Service:
    """A running service; its methods may be called from any thread.

    Attributes:
        url: where it listens.
        replicas: its generators.
        generators: the deployment that the first model's form.
        further: those of further models, by their names.
        dialogue: plans and commits.
        client: all streams of the ingress.
        like_serve: what stands between the edge and the application.
        keys: API keys.
        stores: what the ingress keeps in Redis.
        runs: the responses that it is making.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, folder: Path) -> None:
        self.loop = loop
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self.replicas: list[Replica] = []
        self.further: dict[str, Generators] = {}

    async def build(
        self,
        settings: Settings,
        tokenizer_folder: Path,
        redis_url: SecretStr,
        backends: Sequence[Callable[[], Backend]],
        further: Mapping[str, int],
    ) -> ASGIApp:
        self.keys = KeyRing.open(settings.auth, self._folder)
        wanted = settings.generator
        config = EngineConfig.of(wanted, max_len=wanted.max_len)
        self.replicas = [
            Replica(f"replica-{number}", backend(), config)
            for number, backend in enumerate(backends)
        ]
        self.generators = Generators(self.replicas)
        self.client = GeneratorClient(
            self.generators,
            silence_s=settings.ingress.generator_silence_s,
            max_moves=settings.ingress.max_moves,
            replicas=lambda: [replica.name for replica in self.generators.replicas],
        )
        info = TokenizerInfo(MODEL, VOCAB, wanted.max_len, (EOS,), 1_700_000_000)
        tokenizer, table = _loaded(tokenizer_folder, info)
        self.tokenizer = AsyncTokenizer(tokenizer)
        pool = RedisPool(redis_url, settings.redis, CallMetrics())
        key_file = KeyFile(self._folder / "encryption.json")
        key_file.ensure()
        seal = Seal(key_file.read())
        store = ConversationStore(
            pool,
            key_prefix="parley",
            ttl_s=settings.dialogue.conversation_ttl_s,
            max_items=settings.dialogue.max_items,
            seal=seal,
        )
        self.stores = Stores.over(pool, settings, seal, owner=self.client.subscriber)
        self.dialogue = Dialogue(
            store,
            self.tokenizer,
            settings.dialogue,
            context_length=wanted.max_len,
            further={
                name: ModelReader(self.tokenizer, context) for name, context in further.items()
            },
            personas=RunningPersonas(
                PersonaCatalog.of(settings.dialogue), IntentStore(self._folder / "personas")
            ),
        )
        self.dialogue.pool = pool
        models = Models(
            [
                self._model(FIRST, info, table, self.client, self.generators),
                *(
                    self._further(name, context, table, config, settings)
                    for name, context in further.items()
                ),
            ]
        )
        self.remembering = Remembering(models, self.dialogue, self.stores)
        services = Services(
            settings=settings,
            models=models,
            owner=self.client.subscriber,
            dialogue=self.dialogue,
            keys=self.keys,
            stores=self.stores,
            remembering=self.remembering,
            accounts=Accounts(self.stores.accounts, kept=settings.accounts.kept),
        )
        self.runs = Runs(services)
        application = build_application(services, self.runs)
        self.like_serve = LikeServe(application)
        early = EarlyRefusal(models, self.keys)
        return EdgeMiddleware(self.like_serve, settings.ingress, early)

    def _model(
        self,
        key: str,
        info: TokenizerInfo,
        table: TokenTable,
        client: GeneratorClient,
        generators: Generators,
    ) -> ModelService:
        return ModelService(
            key, info, table, self.tokenizer, client, generators, (f"Generator-{key}",)
        )

    def _further(
        self, name: str, context: int, table: TokenTable, config: EngineConfig, settings: Settings
    ) -> ModelService:
        """Make a further model of one replica, which reads as the first one does."""
        replica = Replica(f"{name}-replica", simulated()(), config)
        self.replicas.append(replica)
        self.further[name] = Generators([replica])
        client = GeneratorClient(
            self.further[name],
            silence_s=settings.ingress.generator_silence_s,
            max_moves=settings.ingress.max_moves,
        )
        info = TokenizerInfo(name, VOCAB, context, (EOS,), 1_700_000_000)
        return self._model(name, info, table, client, self.further[name])

    async def close(self) -> None:
        await asyncio.to_thread(self._stop_engines)
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.dialogue.pool.close()

    def _stop_engines(self) -> None:
        for replica in self.replicas:
            replica.engine.stop(0.0)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run something on the service's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def openai(self, **given: Any) -> openai.OpenAI:
        """The official client, without its own retries."""
        options = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE_S} | given
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def async_openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        )

    def http(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, headers=headers)

    def call(self, function: Callable[[], object]) -> None:
        """Call something on the service's own event loop."""
        self.loop.call_soon_threadsafe(function)

    @property
    def tasks(self) -> int:
        """Tasks that are under way there."""
        return len(asyncio.all_tasks(self.loop))

    @property
    def streams(self) -> int:
        """Streams in all engines, running and waiting."""
        return sum(replica.streams for replica in self.replicas)

    @property
    def generated(self) -> int:
        return sum(replica.engine.stats().generated_total for replica in self.replicas)

    def wait_until_idle(self) -> None:
        """Wait until no engine has a stream and the ingress has forgotten all of them."""
        wait_until(
            lambda: self.streams == 0 and self.client.open_streams == 0, "the end of all streams"
        )


@cache
def _loaded(folder: Path, info: TokenizerInfo) -> tuple[ChatTokenizer, TokenTable]:
    """Load a tokenizer for all services: this takes longer than everything else in one."""
    file = TokenizerFile.from_file(str(folder / "tokenizer.json"))
    return ChatTokenizer(folder, info), TokenTable(file)


def simulated(step_s: float = 0.0, **given: Any) -> Callable[[], Backend]:
    """A backend that never ends a turn by itself."""
    return lambda: SimulatedBackend(vocab_size=VOCAB, step_s=step_s, avoid=(EOS,), **given)


def settings_with(**sections: dict[str, Any]) -> Settings:
    """Settings of a small service."""
    generator = {
        "slots": 4,
        "max_len": 512,
        "max_cached_tokens": 2048,
        "prefill_chunk": 64,
        "max_queued": 8,
        "prefix_block": 8,
        "prefix_cache_mb": 1,
    }
    sections["generator"] = generator | sections.get("generator", {})
    return Settings.load(sections)


@contextmanager
def service(
    tokenizer_folder: Path,
    folder: Path,
    *,
    settings: Settings | None = None,
    backends: Sequence[Callable[[], Backend]] | None = None,
    redis_url: SecretStr = NO_REDIS,
    further: Mapping[str, int] | None = None,
) -> Iterator[Service]:
    """Run a service on a free port.

    Args:
        tokenizer_folder: the tokenizer's files.
        folder: where it keeps its API keys.
        settings: the whole tree.
        backends: one for each generator replica.
        redis_url: without it, Redis is away.
        further: names of further models, and most tokens of a prompt and its reply of each.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    made = Service(loop, listener.getsockname()[1], folder)

    def run_loop() -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()

    thread = threading.Thread(target=run_loop, name="service")
    thread.start()
    app = made.run(
        made.build(
            settings or settings_with(),
            tokenizer_folder,
            redis_url,
            backends or [simulated()],
            further or {},
        )
    )
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan="off", access_log=False)
    )
    serving = asyncio.run_coroutine_threadsafe(server.serve(sockets=[listener]), loop)
    try:
        yield made
    finally:
        server.should_exit = server.force_exit = True
        serving.result(PATIENCE_S)
        made.run(made.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()
        listener.close()
