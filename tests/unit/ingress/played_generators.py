"""Generator replicas that are played by a test, and the client that talks to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from serve_app.errors import GeneratorLost
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.messages.generation import (
    Admitted,
    Finished,
    FinishReason,
    Frame,
    GenerateRequest,
    SamplingParams,
)


class Call:
    """One call to a generator: what the test puts here arrives at the client."""

    def __init__(self, request: GenerateRequest, load: Mapping[str, int]) -> None:
        self.request = request
        self.stream = request.stream
        self.load = dict(load)
        self.items: asyncio.Queue[Admitted | Frame | Exception | None] = asyncio.Queue()
        self.over = asyncio.Event()
        self.read_to_its_end = False

    def send(self, *items: Admitted | Frame | Exception | None) -> None:
        for item in items:
            self.items.put_nowait(item)

    async def read(self) -> AsyncIterator[Admitted | Frame]:
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
            self.read_to_its_end = True
        finally:
            self.over.set()


class Port:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.called = asyncio.Event()
        self.cancelled: list[tuple[str, str]] = []

    def submit(
        self, request: GenerateRequest, load: Mapping[str, int]
    ) -> AsyncIterator[Admitted | Frame]:
        call = Call(request, load)
        self.calls.append(call)
        self.called.set()
        return call.read()

    async def cancel(self, request_id: str, replica: str) -> None:
        self.cancelled.append((request_id, replica))

    async def next_call(self, number: int) -> Call:
        async with asyncio.timeout(5):
            while len(self.calls) <= number:
                self.called.clear()
                await self.called.wait()
        return self.calls[number]


class Ingress:
    """A client, its port, and requests that are opened in the background."""

    def __init__(self, **given: Any) -> None:
        self.port = Port()
        self.client = GeneratorClient(self.port, **({"silence_s": 30.0, "max_moves": 0} | given))
        self._names = 0

    async def open(self, **given: Any) -> tuple[Call, asyncio.Task[Any]]:
        self._names += 1
        sampling = SamplingParams(max_tokens=9, seed=1)
        request = GenerateRequest(f"request-{self._names}", "", 0, (1, 2), sampling, **given)
        opening = asyncio.create_task(self.client.open(request))
        return await self.port.next_call(len(self.port.calls)), opening

    async def open_carrying(self, replica: str = "a", **given: Any) -> tuple[Call, Any]:
        call, opening = await self.open(**given)
        call.send(Admitted(replica, carries_frames=True))
        return call, await opening


async def end(ingress: Ingress) -> None:
    tasks = list(ingress.client._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def frame(*tokens: tuple[int, int], finished: tuple[int, ...] = ()) -> Frame:
    ends = tuple(Finished(it, FinishReason.STOP, 2, 0, 1, 0.0, 0.0, 0.0) for it in finished)
    return Frame(
        tuple(stream for stream, _ in tokens), tuple(token for _, token in tokens), None, ends
    )


async def soon(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0)


async def lost(receiving: Awaitable[Any]) -> None:
    with pytest.raises(GeneratorLost):
        await asyncio.wait_for(receiving, 5)
