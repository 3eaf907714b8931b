"""A cluster that ends and begins again: replies end, conversations stay, replicas share the load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import openai
import pytest
from cluster_home import ClusterHome, kill, wait_for
from streaming import DONE, Stream, Talk, talking

from serve_app.cluster.processes import marked_processes

END_S = 90.0
BLOCK = 32  # generator.prefix_block
GENERATOR = "ray::ServeReplica:parley:Generator"


@pytest.fixture(scope="module")
def home(new_home: Callable[[], ClusterHome]) -> ClusterHome:
    """One home whose cluster the tests of this file end and start, one after the other."""
    made = new_home()
    made.up()
    return made


async def test_down_lets_a_reply_end_and_up_knows_its_conversation(home: ClusterHome) -> None:
    async with talking(home.url) as talk:
        model = await talk.model()
        created = await talk.client.post("/v1/conversations", json={})
        conversation = created.json()["id"]
        stream = talk.turn(model, conversation, "Tell me a long story about a fox.", 300)
        stateless = talk.chat(model, "Tell me a long story about a hen.", 300)
        await stream.runs()
        await stateless.runs()
        run_id = home.state().run_id
        down = asyncio.create_task(asyncio.to_thread(home.run, "down"))
        assert await stateless.ends(END_S) == DONE
        assert await stream.ends(END_S) == DONE
        assert (await down).returncode == 0
    home.assert_nothing_runs(run_id)

    await asyncio.to_thread(home.up, "--replicas", "2")
    with home.client() as client:
        items = client.conversations.items.list(conversation, order="asc").data
        assert [item.to_dict()["content"][0]["text"] for item in items] == [
            "Tell me a long story about a fox.",
            stream.text,
        ]
        turn = client.responses.create(
            model=model, conversation=conversation, input="And then?", max_output_tokens=4
        )
    assert turn.usage is not None
    assert turn.usage.input_tokens > 300, "the model was not shown the first turn"


def test_a_conversation_stays_with_the_generator_that_knows_it(home: ClusterHome) -> None:
    with home.client() as client:
        model = client.models.list().data[0].id
        for number in range(6):
            conversation = client.conversations.create().id
            first, second = (
                turn_usage(client, model, conversation, said)
                for said in (
                    f"Let us talk about the number {number}. " + "It is a number of mine. " * 12,
                    "Why?",
                )
            )
            known = first.input_tokens // BLOCK * BLOCK
            assert known > BLOCK
            assert second.input_tokens_details.cached_tokens >= known


async def test_two_generators_share_the_load(home: ClusterHome) -> None:
    generators = home.processes(GENERATOR)
    assert len(generators) == 2
    before = [sum(process.cpu_times()[:2]) for process in generators]
    async with talking(home.url) as talk:
        model = await talk.model()
        streams = [talk.chat(model, f"Tell me about the number {n}.", 40) for n in range(16)]
        for stream in streams:
            assert await stream.ends(END_S) == DONE
    after = [sum(process.cpu_times()[:2]) for process in generators]
    work = [late - early for late, early in zip(after, before, strict=True)]
    assert min(work) > sum(work) / 4


async def test_replies_of_a_killed_generator_go_on_with_the_other_as_undisturbed(
    home: ClusterHome,
) -> None:
    def ask(talk: Talk) -> list[Stream]:
        return [
            talk.chat(model, f"Tell me story {n}.", 400, temperature=1.0, top_p=0.95, seed=n)
            for n in range(8)
        ]

    generators = home.processes(GENERATOR)
    async with talking(home.url) as talk:
        model = await talk.model()
        undisturbed = ask(talk)
        assert [await stream.ends(END_S) for stream in undisturbed] == [DONE] * 8
        before = await moves(talk)
        worked = {one: sum(one.cpu_times()[:2]) for one in generators}
        streams = ask(talk)
        for stream in streams:
            await stream.runs(pieces=20)
        # The one that has the most of them, since one of the two may have none.
        other, victim = sorted(generators, key=lambda one: sum(one.cpu_times()[:2]) - worked[one])
        victim.kill()
        assert [await stream.ends(END_S) for stream in streams] == [DONE] * 8
        assert await moves(talk) > before
    assert [stream.text for stream in streams] == [stream.text for stream in undisturbed]
    assert other.is_running()
    await asyncio.to_thread(wait_for, lambda: len(home.processes(GENERATOR)) == 2)


def test_the_watcher_brings_back_a_redis_that_was_killed(home: ClusterHome) -> None:
    before = home.redis.pid
    with home.client() as client:
        conversation = client.conversations.create(metadata={"topic": "foxes"}).id
        for redis in home.processes("redis-server"):
            redis.kill()
        wait_for(lambda: home.redis.running() is not None)
        assert client.conversations.retrieve(conversation).metadata == {"topic": "foxes"}
    assert home.redis.pid != before
    # What carries the mark ends before the replicas that still store turns.
    assert home.redis.pid not in {one.pid for one in marked_processes(home.state().run_id)}


async def test_without_its_watcher_the_service_goes_on_and_down_ends_it(home: ClusterHome) -> None:
    run_id = home.state().run_id
    (watcher,) = (
        process
        for process in marked_processes(run_id)
        if "serve_app.cluster.watch" in process.cmdline()
    )
    await asyncio.to_thread(kill, watcher)
    async with talking(home.url) as talk:
        assert await talk.chat(await talk.model(), "Hello.", 4).ends(END_S) == DONE
    down = await asyncio.to_thread(home.run, "down")
    assert down.returncode == 0, down.stderr
    home.assert_nothing_runs(run_id)


def test_what_a_tenant_keeps_is_not_there_for_another(home: ClusterHome) -> None:
    home.up()
    model = home.model()
    keys = [
        home.run("key", "create", tenant, "--tenant", tenant).stdout.strip()
        for tenant in ("acme", "bolt")
    ]
    with home.client(keys[0]) as acme, home.client(keys[1]) as bolt, home.client() as nobody:
        conversation = acme.conversations.create().id
        response = acme.responses.create(
            model=model, conversation=conversation, input="A secret", max_output_tokens=4
        ).id

        def go_on(client: openai.OpenAI, **place: str) -> object:
            return client.responses.create(
                model=model, input="And?", max_output_tokens=4, extra_body=place
            )

        ways: list[Callable[[openai.OpenAI], object]] = [
            lambda client: client.responses.retrieve(response),
            lambda client: client.responses.retrieve(response, stream=True),
            lambda client: client.responses.cancel(response),
            lambda client: client.responses.delete(response),
            lambda client: client.responses.input_items.list(response),
            lambda client: go_on(client, previous_response_id=response),
            lambda client: go_on(client, replaces=response),
            lambda client: go_on(client, conversation=conversation),
            lambda client: client.conversations.retrieve(conversation),
            lambda client: client.conversations.items.list(conversation),
            lambda client: client.conversations.delete(conversation),
        ]
        for reach in ways:
            with pytest.raises(openai.NotFoundError):
                reach(bolt)
            with pytest.raises(openai.AuthenticationError):
                reach(nobody)
        assert acme.responses.retrieve(response).id == response
        assert len(acme.conversations.items.list(conversation).data) == 2
    assert home.run("down").returncode == 0


async def moves(talk: Talk) -> float:
    """Return how many streams have gone from one generator to another."""
    lines = (await talk.client.get("/metrics")).text.splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith("parley_stream_moves_total")]
    return sum(map(float, counts))


def turn_usage(
    client: openai.OpenAI, model: str, conversation: str, said: str
) -> openai.types.responses.ResponseUsage:
    response = client.responses.create(
        model=model, conversation=conversation, input=said, max_output_tokens=4
    )
    assert response.usage is not None
    return response.usage
