"""Calls between replicas, as Serve's handles make them.

A call is pickled both ways, waits while no replica is up, goes on at the replica when nobody waits for
its answer any more, and ends in Ray's error when the replica dies. Calls made on behalf of an HTTP request,
which is what their context says, are cancelled when its client leaves.
"""

from __future__ import annotations

import asyncio
import pickle
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, Protocol

from ray.exceptions import RayActorError

from load.in_process.life import Life

__all__ = ["Deployment", "Handle", "Moment", "Replica", "calls_of_request"]

calls_of_request: ContextVar[list[asyncio.Task[None]] | None] = ContextVar(
    "calls_of_request", default=None
)
"""Where the calls made on behalf of an HTTP request are noted."""

Moment = tuple[str, Literal["before", "after"]]
"""Before a replica carries out a method, or after it has and before its caller knows."""


class Replica(Protocol):
    """What calls go to."""

    @property
    def life(self) -> Life:
        """Its life."""

    @property
    def target(self) -> Any:
        """Has the methods."""


Choose = Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]
"""Picks the name of one of the living replicas, by their names and the call's keyword arguments; None
where the one that is meant is gone."""


class Deployment:
    """The replicas of one deployment.

    Args:
        name: what the deployment is called.
        choose: picks a replica for a call; the one with the fewest calls unless given.
    """

    def __init__(self, name: str, choose: Choose | None = None) -> None:
        self.name = name
        self.replicas: dict[str, Replica] = {}
        self._choose = choose or self._least_busy
        self._busy: dict[str, int] = {}
        self._came_up = asyncio.Event()
        self._ended = asyncio.Event()
        self._doom: dict[Moment, Callable[[Life, Life], None]] = {}

    def add(self, replica: Replica) -> None:
        """Send calls to a replica from now on, for as long as it lives."""
        name = replica.life.name
        self.replicas[name] = replica
        self._busy[name] = 0
        replica.life.at_end(lambda: self._drop(name))
        self._came_up.set()

    async def idle(self) -> None:
        """Wait until no living replica carries anything out."""
        while any(self._busy[name] for name in self.replicas):
            self._ended.clear()
            await self._ended.wait()

    def handle(self, caller: Life) -> Handle:
        """Return a handle for one caller."""
        return Handle(self, caller)

    def doom(self, moment: Moment, strike: Callable[[Life, Life], None]) -> None:
        """Have something happen at the next such moment: it is given caller and replica."""
        self._doom[moment] = strike

    def reach(self, moment: Moment, caller: Life, replica: Life) -> None:
        """Let what is to happen at a moment happen."""
        strike = self._doom.pop(moment, None)
        if strike is not None:
            strike(caller, replica)

    async def choose(self, kwargs: Mapping[str, Any]) -> Replica:
        """Return the replica for a call, once there is one.

        Raises:
            RayActorError: the one that is meant is gone.
        """
        while not self.replicas:
            self._came_up.clear()
            await self._came_up.wait()
        name = self._choose(self.replicas, kwargs)
        if name is None:
            raise RayActorError
        return self.replicas[name]

    def count(self, replica: Life, change: int) -> None:
        """Take note of a call's beginning or end."""
        self._busy[replica.name] += change
        self._ended.set()

    def _drop(self, name: str) -> None:
        self.replicas.pop(name, None)

    def _least_busy(self, living: Mapping[str, Any], _: Mapping[str, Any]) -> str:
        return min(living, key=lambda name: self._busy[name])


class Handle:
    """Calls a deployment as `serve.handle.DeploymentHandle` does: `handle.method.remote(…)`."""

    def __init__(self, deployment: Deployment, caller: Life, *, stream: bool = False) -> None:
        self._deployment = deployment
        self._caller = caller
        self._stream = stream

    def options(self, *, stream: bool) -> Handle:
        """Return a handle whose calls yield."""
        return Handle(self._deployment, self._caller, stream=stream)

    def __getattr__(self, method: str) -> _Method:
        return _Method(self._deployment, self._caller, method, self._stream)


class _Method:
    def __init__(self, deployment: Deployment, caller: Life, method: str, stream: bool) -> None:
        self._to = deployment, caller, method
        self._stream = stream

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        kind: type[_Call] = _StreamingCall if self._stream else _UnaryCall
        return kind(*self._to, args, kwargs)


class _Call(ABC):
    """A call under way: a task of the caller that finds a replica, then one of that replica."""

    def __init__(
        self,
        deployment: Deployment,
        caller: Life,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        caller.check()
        self._deployment = deployment
        self._caller = caller
        self._method = method
        self._sent = pickle.dumps((args, kwargs))
        self._carrying: asyncio.Task[None] | None = None
        self._task = caller.spawn(self._place(kwargs))
        calls = calls_of_request.get()
        if calls is not None:
            calls.append(self._task)
        self._task.add_done_callback(self._placed)

    def cancel(self) -> None:
        """End the call, at the replica too."""
        self._task.cancel()
        if self._carrying is not None:
            self._carrying.cancel()

    async def _place(self, kwargs: Mapping[str, Any]) -> None:
        try:
            replica = await self._deployment.choose(kwargs)
        except RayActorError as error:
            self._fail(error)
            return
        life = replica.life
        self._deployment.reach((self._method, "before"), self._caller, life)
        if not life.alive:
            self._fail(RayActorError())
            return
        sent_args, sent_kwargs = pickle.loads(self._sent)  # noqa: S301  (our own)
        method = getattr(replica.target, self._method)
        work = partial(method, *sent_args, **sent_kwargs)
        self._carrying = life.spawn(self._carry_out(life, work))
        life.at_end(self._replica_died)
        self._deployment.count(life, +1)
        self._carrying.add_done_callback(lambda _: self._carried(life))
        # The request's cancellation reaches the replica through this task.
        await asyncio.wait({self._carrying})

    @abstractmethod
    async def _carry_out(self, life: Life, work: Callable[[], Any]) -> None:
        """Have the replica do the work, and hand what comes of it to the caller."""

    @abstractmethod
    def _fail(self, error: BaseException) -> None:
        """Tell the caller that nothing more comes of it."""

    def _carried(self, life: Life) -> None:
        self._deployment.count(life, -1)
        life.no_longer(self._replica_died)

    def _replica_died(self) -> None:
        self._fail(RayActorError())

    def _placed(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            # A caller that died leaves its calls to go on; a request that was cancelled doesn't.
            if self._caller.alive and self._carrying is not None:
                self._carrying.cancel()
            self._fail(asyncio.CancelledError())


class _UnaryCall(_Call):
    def __init__(self, *given: Any) -> None:
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        super().__init__(*given)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answered().__await__()

    async def _answered(self) -> Any:
        return pickle.loads(await asyncio.shield(self._answer))  # noqa: S301  (our own)

    async def _carry_out(self, life: Life, work: Callable[[], Any]) -> None:
        try:
            answer = pickle.dumps(await work())
        except asyncio.CancelledError:
            self._fail(asyncio.CancelledError())
            raise
        except Exception as error:  # noqa: BLE001  (it goes to the caller, as with Serve)
            self._deployment.reach((self._method, "after"), self._caller, life)
            self._fail(error)
        else:
            self._deployment.reach((self._method, "after"), self._caller, life)
            if not self._answer.done():
                self._answer.set_result(answer)

    def _fail(self, error: BaseException) -> None:
        if self._answer.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self._answer.cancel()
        else:
            self._answer.set_exception(error)
            self._answer.exception()  # whoever asked may be gone


class _StreamingCall(_Call):
    def __init__(self, *given: Any) -> None:
        self._items: asyncio.Queue[bytes | BaseException] = asyncio.Queue()
        super().__init__(*given)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        item = await self._items.get()
        if isinstance(item, bytes):
            return pickle.loads(item)  # noqa: S301  (our own)
        self._items.put_nowait(item)
        raise item

    async def _carry_out(self, life: Life, work: Callable[[], Any]) -> None:
        items = work()
        try:
            async for item in items:
                life.check()
                self._items.put_nowait(pickle.dumps(item))
        except asyncio.CancelledError:
            self._fail(asyncio.CancelledError())
            raise
        except Exception as error:  # noqa: BLE001  (it goes to the caller, as with Serve)
            self._fail(error)
        else:
            self._fail(StopAsyncIteration())
        finally:
            await items.aclose()

    def _fail(self, error: BaseException) -> None:
        self._items.put_nowait(error)
