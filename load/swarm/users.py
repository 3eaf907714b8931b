"""Locust's users: one class for each API, whose users have a persona each."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any, ClassVar

import gevent
import orjson
from locust import User, task

from load.command_line import api_key, bearer
from load.dialects import ChatStream, CompletionStream, ReplyStream, ResponseStream
from load.http_client import Address, RequestFailed
from load.swarm.connection import Answer, Connection
from load.swarm.personas import Persona, chosen_personas
from load.swarm.statistics import record
from load.workload import Conversation, Workload
from serve_app.errors import ConfigError
from serve_app.messages.tokenization import Message

__all__ = ["ChatUser", "CompletionUser", "ConversationUser"]

_SILENCE_S = 120.0
# After a failure that names no time, so that nobody is asked in a tight loop.
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# Pieces of a reply after which an impatient persona may hang up.
_WORDS_BEFORE_CANCEL = 3

_users = itertools.count()


class _Talker(User):
    """Holds one conversation after the other, as its persona does."""

    abstract = True
    api: ClassVar[str]
    dialect: ClassVar[type[ReplyStream]]

    def on_start(self) -> None:
        """Choose a persona and find the model; Locust calls this once per user."""
        options: Any = self.environment.parsed_options
        number = next(_users)
        personas = chosen_personas(options.personas)
        self.persona: Persona = personas[number % len(personas)]
        self._options = options
        self._random = random.Random(number)
        self._workload = Workload(
            turns=self.persona.turns,
            prompt_tokens=self.persona.prompt_tokens,
            output_tokens=self.persona.output_tokens,
            ignore_eos=options.ignore_eos,
            seed=random.getrandbits(32),
        )
        self._conversations = itertools.count()
        self.connection = Connection(
            _address(self.host or ""), bearer(api_key(options.api_key_env)), timeout_s=_SILENCE_S
        )
        self.model = options.model or self._first_model()

    def on_stop(self) -> None:
        """Hang up."""
        self.connection.close()

    @task
    def talk(self) -> None:
        """Hold one conversation."""
        conversation = self._workload.conversation(next(self._conversations))
        if not self.begin():
            return
        while not conversation.over:
            if self._random.random() < self.persona.reconnects:
                self.connection.close()
            if not self._ask(conversation):
                break  # without its answer it can't go on
            self._think()
        self.end()

    def begin(self) -> bool:
        """Prepare what a conversation needs on the server; return whether it can be held."""
        return True

    def end(self) -> None:
        """Take away what a conversation leaves on the server."""

    def body(self, messages: tuple[Message, ...]) -> dict[str, Any]:
        """Return the question as JSON."""
        return self.dialect.body(self.model, messages, self._workload)

    @property
    def row(self) -> str:
        """Name of this user's rows in Locust's statistics."""
        return f"{self.api} {self.persona.name}"

    def _ask(self, conversation: Conversation) -> bool:
        body = self.body(conversation.ask())
        hangs_up = self._random.random() < self.persona.cancels
        stream = self.dialect()
        answer = None

        def take(piece: bytes) -> bool:
            stream.feed(piece)
            return not (hangs_up and stream.reply.arrivals >= _WORDS_BEFORE_CANCEL)

        try:
            answer = self.connection.request("POST", self.dialect.PATH, body, sink=take)
        except RequestFailed as failure:
            stream.failed(failure.kind)
        else:
            if answer.status != 200:
                stream.failed(answer.refusal)
            elif answer.whole and not stream.complete:
                stream.failed("cut")
        cancelled = answer is not None and not answer.whole
        seconds = time.perf_counter() - stream.reply.sent_at
        stream.reply.tokens = conversation.hear(stream.text, stream.reply.tokens)
        record(self.environment, self.row, stream.reply, seconds=seconds, cancelled=cancelled)
        if stream.reply.error is not None:
            self._wait_as_told(answer)
            return False
        return True

    def _think(self) -> None:
        mean = self.persona.think_s * self._options.think
        if mean:
            gevent.sleep(min(self._random.expovariate(1.0 / mean), 4.0 * mean))

    def _wait_as_told(self, answer: Answer | None) -> None:
        told = answer.retry_after_s if answer is not None else 0.0
        gevent.sleep(min(told, _LONGEST_PAUSE_S) or _PAUSE_S)

    def _first_model(self) -> str:
        answer = self.connection.request("GET", "/models")
        try:
            models: Any = orjson.loads(answer.body)
            return str(models["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            msg = f"The server lists no model (HTTP {answer.status}); name one with --model."
            raise ConfigError(msg) from error


class ChatUser(_Talker):
    """POST /v1/chat/completions, with the history in every request."""

    api = "chat"
    dialect = ChatStream


class CompletionUser(_Talker):
    """POST /v1/completions, with what was said so far as the prompt."""

    api = "completions"
    dialect = CompletionStream


class ConversationUser(_Talker):
    """POST /v1/responses in a stored conversation: only what is new is sent."""

    api = "conversations"
    dialect = ResponseStream

    def begin(self) -> bool:
        """Create the conversation."""
        try:
            answer = self.connection.request("POST", "/conversations", {})
        except RequestFailed:
            answer = None
        if answer is None or answer.status != 200:
            reply = self.dialect().reply
            reply.error = "connect" if answer is None else answer.refusal
            record(self.environment, self.row, reply, seconds=0.0, cancelled=False)
            self._wait_as_told(answer)
            return False
        created: Any = orjson.loads(answer.body)
        self._conversation = str(created["id"])
        return True

    def end(self) -> None:
        """Delete the conversation."""
        try:
            self.connection.request("DELETE", f"/conversations/{self._conversation}")
        except RequestFailed:
            self._wait_as_told(None)  # it expires by itself

    def body(self, messages: tuple[Message, ...]) -> dict[str, Any]:
        """Return the newest question, for the stored conversation."""
        return ResponseStream.stored(self.model, messages[-1], self._workload, self._conversation)


def _address(host: str) -> Address:
    """Return where the API is; `--host` may leave its version out."""
    address = Address.of(host)
    return address if address.path else Address.of(f"{host.rstrip('/')}/v1")
