"""Clients of a real cluster: who leaves costs nothing, and many at once are served."""

from __future__ import annotations

import asyncio

import httpx
import psutil
import pytest
from cluster_home import ClusterHome, wait_for
from prometheus_client.parser import text_string_to_metric_families
from streaming import DONE, Stream, Talk, talking

# No reply of so many tokens is done before its client leaves.
LONG = 1900
FREED_S = 15.0


def gauges(cluster: ClusterHome) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{cluster.url}/metrics", timeout=30).text)
    return {
        family.name.removeprefix("parley_"): sum(sample.value for sample in family.samples)
        for family in families
        if family.type == "gauge"
    }


async def wait_until_running(cluster: ClusterHome, count: int) -> None:
    await asyncio.to_thread(wait_for, lambda: cluster.generator("running") == count, FREED_S)


@pytest.mark.parametrize("headers", [{}, {"x-request-disconnect-disabled": "?1"}])
async def test_a_client_that_leaves_a_stream_frees_its_slot(
    cluster: ClusterHome, headers: dict[str, str]
) -> None:
    async with talking(cluster.url) as talk:
        talk.client.headers.update(headers)
        before = cluster.generator("generated_total")
        stream = talk.chat(await talk.model(), "Tell me everything about whales.", LONG)
        await stream.runs()
        await wait_until_running(cluster, 1)
        await stream.leave()
        await wait_until_running(cluster, 0)
    assert cluster.generator("generated_total") - before < LONG, "it was generated to its end"


async def test_a_client_that_leaves_while_it_waits_for_a_whole_reply_frees_its_slot(
    cluster: ClusterHome,
) -> None:
    async with talking(cluster.url) as talk:
        body = {
            "model": await talk.model(),
            "messages": [{"role": "user", "content": "Tell me everything about dolphins."}],
            "max_tokens": LONG,
            "ignore_eos": True,
        }
        before = cluster.generator("generated_total")
        request = asyncio.create_task(talk.client.post("/v1/chat/completions", json=body))
        await wait_until_running(cluster, 1)
        request.cancel()
        await wait_until_running(cluster, 0)
    assert request.cancelled()
    assert cluster.generator("generated_total") - before < LONG, "it was generated to its end"


async def test_a_turn_that_was_left_is_not_stored(cluster: ClusterHome) -> None:
    async with talking(cluster.url) as talk:
        conversation = await new_conversation(talk)
        stream = talk.turn(await talk.model(), conversation, "Tell me about bees.", LONG)
        await stream.runs()
        await stream.leave()
        await wait_until_running(cluster, 0)
        items = await talk.client.get(f"/v1/conversations/{conversation}/items")
        assert items.json()["data"] == []


async def test_gauges_show_what_runs_what_waits_and_the_tokens_held(cluster: ClusterHome) -> None:
    # Of replies as long as these, the budget of tokens lets about 12 run at once.
    count = 16

    def seen() -> bool:
        load = gauges(cluster)
        runs, waits = load["num_requests_running"], load["num_requests_waiting"]
        return runs + waits == count and runs > 1 and waits > 1 and load["kv_cache_tokens"] > runs

    def idle() -> bool:
        load = gauges(cluster)
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_tokens")
        return not any(load[name] for name in names)

    async with talking(cluster.url) as talk:
        model = await talk.model()
        streams = [talk.chat(model, f"Tell me all about whale {n}.", LONG) for n in range(count)]
        await asyncio.to_thread(wait_for, seen)
        assert [stream.end for stream in streams] == [None] * count
    await asyncio.to_thread(wait_for, idle)


async def test_32_streams_at_once_stay_within_the_memory_of_a_small_machine(
    cluster: ClusterHome,
) -> None:
    async with talking(cluster.url) as talk:
        model = await talk.model()
        streams: list[Stream] = [
            talk.chat(model, f"Tell me a story of {n} travellers.", 150) for n in range(32)
        ]
        for stream in streams:
            assert await stream.ends(120) == DONE
    assert sum(map(memory_of, cluster.processes())) < 3e9


def test_two_terminals_talk_at_once_and_each_gets_its_own_answers(cluster: ClusterHome) -> None:
    # Both answers are the same on every CPU, however its kernels round.
    asked = {"Japan": "Tokyo", "Russia": "Moscow"}
    terminals = {country: cluster.launch("chat") for country in asked}
    for country, terminal in terminals.items():
        assert terminal.stdin is not None
        terminal.stdin.write(
            f"/params max_output_tokens=24 temperature=0\nWhat is the capital of {country}?\n"
        )
        terminal.stdin.flush()
    said = {country: terminal.communicate(timeout=60)[0] for country, terminal in terminals.items()}
    for country, capital in asked.items():
        assert terminals[country].returncode == 0, said[country]
        assert capital in said[country]
        assert not any(other in said[country] for other in asked.values() if other != capital)


def memory_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0  # an idle worker has ended in between


async def new_conversation(talk: Talk) -> str:
    created = await talk.client.post("/v1/conversations", json={})
    return str(created.json()["id"])
