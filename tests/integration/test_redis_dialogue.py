"""Stored conversations through the dialogue manager: what the model is asked on the next turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve_app.dialogue.manager import DialogueManager
from serve_app.errors import ConversationNotFound, StateUnavailable
from serve_app.messages.dialogue import CommitTurn, Item, PlanTurn
from serve_app.messages.tokenization import ChatEncoding, Message, TokenizerInfo
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint
from serve_app.settings import DialogueSettings, RedisSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.state.records import StoredItem
from serve_app.state.server import RedisServer
from serve_app.tokenization.tokenizer import ChatTokenizer


class LocalTokenizer:
    def __init__(self, folder: Path) -> None:
        GgufCheckpoint(bundled_model()).tokenizer().write(folder)
        self.real = ChatTokenizer(folder, TokenizerInfo("SmolLM2", 49152, 8192, (2,), 1))

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        return self.real.encode_chat(messages)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LocalTokenizer:
    return LocalTokenizer(tmp_path_factory.mktemp("smol"))


SETTINGS = DialogueSettings(persona="You are Parley.", reply_tokens=64)


@pytest.fixture
async def store(own_redis: RedisServer) -> AsyncIterator[ConversationStore]:
    url = own_redis.url()
    assert url is not None
    pool = RedisPool(url, RedisSettings())
    store = ConversationStore(
        pool,
        key_prefix="parley",
        ttl_s=SETTINGS.conversation_ttl_s,
        max_items=SETTINGS.max_items,
    )
    yield store
    await pool.close()


@pytest.fixture
def manager(store: ConversationStore, tokenizer: LocalTokenizer) -> DialogueManager:
    return DialogueManager(store, tokenizer, SETTINGS, context_length=512)


def ask(conversation: str | None, text: str, **given: object) -> PlanTurn:
    return PlanTurn("acme", (Message("user", text),), conversation=conversation, **given)


def finished(conversation: str, name: str, asked: str, told: str) -> CommitTurn:
    response = f"resp_{name}"
    items = (
        Item(f"msg_{name}_in", "user", asked, response=response, created_at=1),
        Item(f"msg_{name}_out", "assistant", told, response=response, created_at=2),
    )
    return CommitTurn("acme", conversation, response, items)


async def test_the_model_sees_the_conversation_on_the_next_turn(
    manager: DialogueManager, store: ConversationStore, tokenizer: LocalTokenizer
) -> None:
    view = await store.create("acme", metadata={"a": "b"})
    first = await manager.plan(ask(view.id, "My name is Ada."))
    await manager.commit(finished(view.id, "1", "My name is Ada.", "Hello, Ada!"))
    second = await manager.plan(ask(view.id, "Who am I?"))
    assert tokenizer.real.decode(second.prompt) == (
        "<|im_start|>system\nYou are Parley.<|im_end|>\n"
        "<|im_start|>user\nMy name is Ada.<|im_end|>\n"
        "<|im_start|>assistant\nHello, Ada!<|im_end|>\n"
        "<|im_start|>user\nWho am I?<|im_end|>\n<|im_start|>assistant\n"
    )
    # The next prompt begins with this one: what was cached serves again.
    assert second.prompt[: len(first.prompt)] == first.prompt
    assert first.affinity == second.affinity == view.id
    assert await store.get("acme", view.id) == view


async def test_a_conversation_keeps_its_own_system_message(
    manager: DialogueManager, store: ConversationStore, tokenizer: LocalTokenizer
) -> None:
    view = await store.create(
        "acme", metadata={}, items=[StoredItem("msg_s", "system", "You are a pirate.")]
    )
    for number in range(40):
        await manager.commit(finished(view.id, str(number), f"ask {number}", f"tell {number}"))
    planned = await manager.plan(ask(view.id, "And now?"))
    prompt = tokenizer.real.decode(planned.prompt)
    assert prompt.startswith("<|im_start|>system\nYou are a pirate.<|im_end|>")
    assert "Parley" not in prompt
    assert planned.turns_left_out > 0
    assert len(planned.prompt) + 64 <= 512
    assert "tell 39" in prompt
    assert f"ask {planned.turns_left_out - 1}<" not in prompt
    assert f"ask {planned.turns_left_out}<" in prompt


async def test_instructions_do_not_carry_over(
    manager: DialogueManager, store: ConversationStore, tokenizer: LocalTokenizer
) -> None:
    view = await store.create("acme", metadata={})
    rhyming = await manager.plan(ask(view.id, "Hi", instructions="Rhyme."))
    await manager.commit(finished(view.id, "1", "Hi", "Hello!"))
    plain = await manager.plan(ask(view.id, "Hi"))
    assert "Rhyme." in tokenizer.real.decode(rhyming.prompt)
    assert "Parley" not in tokenizer.real.decode(rhyming.prompt)
    assert "Rhyme." not in tokenizer.real.decode(plain.prompt)
    assert "Parley" in tokenizer.real.decode(plain.prompt)


async def test_a_turn_that_is_not_committed_leaves_nothing(
    manager: DialogueManager, store: ConversationStore, tokenizer: LocalTokenizer
) -> None:
    view = await store.create("acme", metadata={})
    await manager.plan(ask(view.id, "Lost words"))
    planned = await manager.plan(ask(view.id, "Hi"))
    assert "Lost words" not in tokenizer.real.decode(planned.prompt)


async def test_a_deleted_conversation_can_not_be_talked_to(
    manager: DialogueManager, store: ConversationStore
) -> None:
    view = await store.create("acme", metadata={})
    await store.delete("acme", view.id)
    with pytest.raises(ConversationNotFound):
        await manager.plan(ask(view.id, "Hi"))


async def test_stateless_turns_go_on_while_redis_is_away(
    manager: DialogueManager, store: ConversationStore, own_redis: RedisServer
) -> None:
    view = await store.create("acme", metadata={})
    own_redis.stop()
    with pytest.raises(StateUnavailable):
        await manager.plan(ask(view.id, "Hi"))
    assert (await manager.plan(ask(None, "Hi"))).prompt
    own_redis.start()
    assert (await manager.plan(ask(view.id, "Hi"))).prompt
