"""One order in a conversation, whatever comes between the beginning of a turn and its commit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from serve_app.errors import IdempotencyConflict, ResponseLost, ResponseNotFound
from serve_app.settings import RedisSettings, ResponsesSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.conversations import ConversationStore
from serve_app.state.keyspace import conversation_of, new_response_id
from serve_app.state.records import StoredItem
from serve_app.state.responses import ResponseStore
from serve_app.state.server import RedisServer
from serve_app.state.turns import BegunTurn, TurnBegin


@dataclass
class Stores:
    """A conversation of acme's, and what changes it."""

    conversations: ConversationStore
    responses: ResponseStore
    scripts: ConversationScripts
    conversation: str

    async def begin(self, response: str, **given: Any) -> BegunTurn:
        options: dict[str, Any] = {"owner": "me", "lease_s": 60.0, "on_busy": "enqueue"} | given
        return await self.conversations.turns.begin(
            "acme", self.conversation, TurnBegin(response, draft={"response": {}}, **options)
        )

    async def commit(self, response: str, name: str, begun: BegunTurn, owner: str = "me") -> bool:
        items = [
            StoredItem(f"msg_{name}_in", "user", f"ask {name}", response=response),
            StoredItem(f"msg_{name}_out", "assistant", f"tell {name}", response=response),
        ]
        return await self.conversations.turns.commit(
            "acme",
            self.conversation,
            response=response,
            items=items,
            owner=owner,
            base=begun.base,
            record={"response": {}},
        )

    async def append(self, name: str) -> None:
        items = [StoredItem(f"msg_{name}", "user", f"note {name}")]
        await self.conversations.add_items("acme", self.conversation, items)

    async def contents(self) -> list[str]:
        _, items = await self.conversations.load("acme", self.conversation)
        return [item.content for item in items]

    async def keys_of(self, place: str) -> set[str]:
        """Return which parts of a conversation there are; none stays for good."""
        root = self.scripts.keys("acme", place).root
        async with self.scripts.redis.client("conversation") as client:
            keys = await client.keys(f"{root}:*")
            assert all([await client.ttl(key) > 0 for key in keys])
        return {key.decode().removeprefix(f"{root}:") for key in keys}

    def new_response(self) -> str:
        return new_response_id(self.conversation)


@pytest.fixture
async def stores(shared_redis: RedisServer) -> AsyncIterator[Stores]:
    url = shared_redis.url()
    assert url is not None
    pool = RedisPool(url, RedisSettings())
    store = ConversationStore(pool, key_prefix="order", ttl_s=100, max_items=1000)
    scripts = ConversationScripts(pool, key_prefix="order", ttl_s=100, max_items=1000)
    made = await store.create("acme", metadata={})
    yield Stores(store, ResponseStore(scripts, ResponsesSettings()), scripts, made.id)
    await pool.close()


@pytest.mark.parametrize("first", [False, True])
async def test_an_item_appended_while_a_turn_runs_stays_on_the_line_before_it(
    stores: Stores, first: bool
) -> None:
    before = []
    if first:
        response = stores.new_response()
        await stores.commit(response, "0", await stores.begin(response))
        before = ["ask 0", "tell 0"]
    response = stores.new_response()
    begun = await stores.begin(response)
    await stores.append("a")
    await stores.append("b")
    await stores.commit(response, "1", begun)
    assert await stores.contents() == [*before, "note a", "note b", "ask 1", "tell 1"]


async def test_a_turn_that_takes_anothers_place_leaves_appended_items_on_the_old_line(
    stores: Stores,
) -> None:
    old, new = stores.new_response(), stores.new_response()
    await stores.commit(old, "1", await stores.begin(old))
    begun = await stores.begin(new, replaces=old)
    await stores.append("a")
    await stores.commit(new, "2", begun)
    assert await stores.contents() == ["ask 2", "tell 2"]


async def test_a_turn_that_was_only_slow_does_not_store_beside_those_that_went_on(
    stores: Stores,
) -> None:
    slow, next_one = stores.new_response(), stores.new_response()
    begun = await stores.begin(slow, owner="slow", lease_s=0.0)
    going_on = await stores.begin(next_one)
    assert not going_on.waits
    await stores.commit(next_one, "2", going_on)
    with pytest.raises(ResponseLost):
        await stores.commit(slow, "1", begun, owner="slow")
    assert await stores.contents() == ["ask 2", "tell 2"]
    # It can be told to have failed, and be made again.
    state, _ = await stores.responses.seize("acme", slow, "somebody")
    assert state == "seized"


async def test_a_turn_that_waited_too_long_for_its_lease_waits_again(stores: Stores) -> None:
    first, slow, other = (stores.new_response() for _ in range(3))
    begun = await stores.begin(first)
    assert (await stores.begin(slow, owner="slow", lease_s=0.0)).waits == 1
    assert (await stores.begin(other)).waits == 1
    assert (await stores.begin(slow, owner="slow", again=True)).waits == 2
    await stores.commit(first, "1", begun)
    await stores.commit(other, "2", await stores.begin(other, again=True))
    begun = await stores.begin(slow, owner="slow", again=True)
    await stores.commit(slow, "3", begun, owner="slow")
    assert (await stores.contents())[-2:] == ["ask 3", "tell 3"]


async def test_a_look_at_the_queue_that_comes_behind_the_turns_end_begins_nothing(
    stores: Stores,
) -> None:
    first, waiting, other = (stores.new_response() for _ in range(3))
    await stores.commit(first, "1", await stores.begin(first))
    running = stores.new_response()
    begun = await stores.begin(running)
    assert (await stores.begin(waiting)).waits == 1
    # Cancelled while it asks whether it is its turn: the answer is on its way.
    assert await stores.responses.conclude("acme", waiting, "me", {"response": {"status": "x"}})
    with pytest.raises(ResponseLost):
        await stores.begin(waiting, again=True)
    record = await stores.responses.get("acme", waiting)
    assert record["response"] == {"status": "x"}
    await stores.commit(running, "2", begun)
    assert not (await stores.begin(other)).waits


@pytest.mark.parametrize("place", ["follows", "replaces"])
async def test_a_turn_that_waited_for_what_is_gone_can_be_told_to_have_failed(
    stores: Stores, place: str
) -> None:
    first, running, waiting = (stores.new_response() for _ in range(3))
    await stores.commit(first, "1", await stores.begin(first))
    begun = await stores.begin(running)
    assert (await stores.begin(waiting, **{place: first})).waits == 1
    await stores.responses.delete("acme", first)
    await stores.commit(running, "2", begun)
    with pytest.raises(ResponseNotFound, match=first):
        await stores.begin(waiting, again=True, **{place: first})
    ended = {"response": {"status": "failed"}}
    assert await stores.responses.conclude("acme", waiting, "me", ended)
    record = await stores.responses.get("acme", waiting)
    assert record["response"] == ended["response"]
    # It is out of the others' way then.
    assert not (await stores.begin(stores.new_response())).waits


@pytest.mark.parametrize("place", ["follows", "replaces"])
async def test_a_turn_that_is_refused_at_once_leaves_nothing(stores: Stores, place: str) -> None:
    first, refused = stores.new_response(), stores.new_response()
    with pytest.raises(ResponseNotFound, match=first):
        await stores.begin(refused, **{place: first})
    with pytest.raises(ResponseNotFound, match=refused):
        await stores.responses.get("acme", refused)
    assert not (await stores.begin(stores.new_response())).waits


async def test_a_commit_that_is_sent_again_behind_the_responses_deletion_was_carried_out(
    stores: Stores,
) -> None:
    response = stores.new_response()
    begun = await stores.begin(response)
    assert await stores.commit(response, "1", begun)
    await stores.responses.delete("acme", response)
    # The answer to the first was lost. A client that is told of an error would say it once more.
    assert not await stores.commit(response, "1", begun)
    assert await stores.contents() == ["ask 1", "tell 1"]
    with pytest.raises(ResponseNotFound):
        await stores.responses.get("acme", response)


async def test_a_turn_whose_response_was_deleted_is_not_made_again(stores: Stores) -> None:
    response = stores.new_response()
    await stores.commit(response, "1", await stores.begin(response))
    await stores.responses.delete("acme", response)
    with pytest.raises(ResponseNotFound):
        await stores.begin(response)
    assert await stores.contents() == ["ask 1", "tell 1"]


async def test_what_continues_a_response_that_went_with_all_around_it_names_the_response(
    stores: Stores,
) -> None:
    gone = new_response_id()
    for place in ("follows", "replaces"):
        with pytest.raises(ResponseNotFound, match=gone):
            await stores.conversations.turns.begin(
                "acme",
                conversation_of(gone),
                TurnBegin(stores.new_response(), owner="me", lease_s=60.0, **{place: gone}),
            )


async def test_a_turn_whose_response_was_deleted_before_its_end_is_not_made_again(
    stores: Stores,
) -> None:
    response = stores.new_response()
    begun = await stores.begin(response)
    await stores.responses.delete("acme", response)
    with pytest.raises(ResponseLost):
        await stores.commit(response, "1", begun)
    with pytest.raises(ResponseNotFound):
        await stores.begin(response)
    assert await stores.contents() == []


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("claim", [None, "claim"])
async def test_what_is_deleted_with_all_around_it_is_not_made_again_where_a_key_leads_to_it(
    stores: Stores, claim: str | None, *, ended: bool
) -> None:
    response = new_response_id()
    place = conversation_of(response)
    turn = TurnBegin(response, "me", 60.0, draft={"response": {}}, new=True, claim=claim)
    turns = stores.conversations.turns
    begun = await turns.begin("acme", place, turn)
    if ended:
        await replace(stores, conversation=place).commit(response, "1", begun)
    await stores.responses.delete("acme", response)
    keys = await stores.keys_of(place)
    assert keys == ({"claims", "turns"} if claim else set())
    if claim:
        with pytest.raises(ResponseNotFound):
            await turns.begin("acme", place, turn)
        assert await stores.keys_of(place) == keys


async def test_a_response_that_readers_may_know_is_made_by_nobody_else(stores: Stores) -> None:
    running, dead, failed = (stores.new_response() for _ in range(3))
    await stores.begin(running)
    await stores.begin(dead, owner="dead", lease_s=0.0)
    await stores.begin(failed, owner="failed")
    end = {"response": {"status": "failed"}}
    assert await stores.responses.conclude("acme", failed, "failed", end)
    for response in (running, dead, failed):
        with pytest.raises(IdempotencyConflict):
            await stores.begin(response, owner="another")
    assert (await stores.responses.get("acme", failed))["response"] == end["response"]
    await stores.begin(running)  # sent again since its answer was lost


async def test_an_end_that_is_stored_twice_since_its_answer_was_lost_was_stored(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = stores.new_response()
    await stores.begin(response)
    commands: list[tuple[Any, ...]] = []
    command = ConversationScripts.command

    def noted(self: ConversationScripts, *given: Any) -> tuple[Any, ...]:
        commands.append(command(self, *given))
        return commands[-1]

    ended = {"response": {"status": "cancelled"}}
    with monkeypatch.context() as patch:
        patch.setattr(ConversationScripts, "command", noted)
        assert await stores.responses.conclude("acme", response, "me", ended)
    monkeypatch.setattr(ConversationScripts, "command", lambda *_: commands[-1])
    assert await stores.responses.conclude("acme", response, "me", ended)
    monkeypatch.undo()
    # Another end is not.
    assert not await stores.responses.conclude("acme", response, "me", {"response": {}})
    record = await stores.responses.get("acme", response)
    assert record["response"] == ended["response"]
