"""What a turn with a persona costs in Redis: one round trip before it, one after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio.connection

from serve_app.dialogue.manager import DialogueManager
from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.personas.catalog import PersonaCatalog, shipped_personas
from serve_app.dialogue.personas.running import RunningPersonas
from serve_app.messages.dialogue import CommitTurn, Item, PlanTurn, TurnPlan
from serve_app.messages.tokenization import ChatEncoding, Message
from serve_app.settings import DialogueSettings, RedisSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.state.profiles import NewFact, ProfileStore
from serve_app.state.server import RedisServer
from serve_app.state.turns import TurnBegin

USER = "ann"


class WordTokenizer:
    """A token a word."""

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        costs = tuple(1 + len(message.content.split()) for message in messages)
        return ChatEncoding(tuple(range(sum(costs))), costs, 0)

    async def count(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(len(text.split()) for text in texts)


class Talk:
    """One conversation with the companion."""

    def __init__(self, manager: DialogueManager, conversation: str) -> None:
        self.manager = manager
        self.conversation = conversation

    async def plan(self, name: str, text: str) -> TurnPlan:
        begin = TurnBegin(
            response=f"resp_{name}", owner="me", lease_s=9, on_busy="enqueue", user=USER
        )
        return await self.manager.plan(
            PlanTurn(
                "acme",
                (Message("user", text),),
                conversation=self.conversation,
                begin=begin,
                takes_persona=True,
            )
        )

    async def commit(self, name: str, text: str, plan: TurnPlan) -> None:
        items = (
            Item(f"msg_{name}_in", "user", text),
            Item(f"msg_{name}_out", "assistant", "I see."),
        )
        await self.manager.commit(
            CommitTurn(
                "acme", self.conversation, f"resp_{name}", items, "me", plan.base, state=plan.state
            )
        )


async def test_everything_that_a_turn_needs_takes_one_round_trip_each_way(
    shared_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = shared_redis.url()
    assert url is not None
    pool = RedisPool(url, RedisSettings())
    store = ConversationStore(pool, key_prefix="trips", ttl_s=99, max_items=99)
    profiles = ProfileStore(pool, key_prefix="trips", ttl_s=99, max_facts=9)
    personas = RunningPersonas(PersonaCatalog(shipped_personas()), IntentStore(tmp_path))
    manager = DialogueManager(
        store, WordTokenizer(), DialogueSettings(), context_length=2000, personas=personas
    )
    made = await store.create("acme", metadata={}, persona="companion", user=USER)
    talk = Talk(manager, made.id)
    first = await talk.plan("1", "I watched a great film last night")
    await talk.commit("1", "I watched a great film last night", first)
    line = await store.summaries.line("acme", made.id, "msg_1_out")
    assert line is not None
    await store.summaries.keep("acme", made.id, "msg_1_out", "A film.", forgotten=line.forgotten)
    await profiles.learn("acme", USER, [NewFact("name", "The user is Ann.")], response="resp_1")

    sent: list[str] = []
    kind = redis.asyncio.connection.AbstractConnection
    send = kind.send_packed_command

    async def counted(self: Any, *args: Any, **given: Any) -> Any:
        sent.append("round trip")
        return await send(self, *args, **given)

    monkeypatch.setattr(kind, "send_packed_command", counted)
    second = await talk.plan("2", "I cooked pasta for dinner")
    assert len(sent) == 1
    await talk.commit("2", "I cooked pasta for dinner", second)
    assert len(sent) == 2
    monkeypatch.undo()

    # And all of it came: history and state, summary, profile.
    assert second.state is not None
    assert second.state["turns"] == 2
    assert second.explained is not None
    assert second.explained["remembered"] == {"facts": 1, "summary": True, "recalled": 0}
    begun = await store.turns.begin("acme", made.id, TurnBegin("resp_3", "me", 9))
    assert begun.state == json.loads(json.dumps(second.state))
    await pool.close()
