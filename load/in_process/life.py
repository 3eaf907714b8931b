"""Which tasks belong to which replica, so that a replica can die of all of them at once."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

__all__ = ["Life"]

Result = TypeVar("Result")

_owners: weakref.WeakKeyDictionary[asyncio.Task[Any], Life] = weakref.WeakKeyDictionary()


class Life:
    """A replica's life: its tasks, and those that they make, in whatever context.

    A process that is killed cleans nothing up. Its tasks are cancelled here, and what they then do to
    clean up must reach nobody: whoever gives a replica a way out (calls, Redis, sockets) has it end in
    `check` when the life is over.

    Args:
        name: of the replica.

    Attributes:
        alive: False once it has died.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._last_words: set[Callable[[], None]] = set()

    @staticmethod
    def follow(loop: asyncio.AbstractEventLoop) -> None:
        """Have a loop's tasks belong to the life of the task that made them."""
        loop.set_task_factory(_make_task)  # type: ignore[arg-type]

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run something as a task of this life; in a life that is over it does not begin."""
        # Not through the loop: whoever calls this may live another life.
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), context=Context())
        self._adopt(task)
        return task

    def at_end(self, tell: Callable[[], None]) -> None:
        """Have something called when this life ends: what others notice of it."""
        self._last_words.add(tell)

    def no_longer(self, tell: Callable[[], None]) -> None:
        """Take back what was to be called at the end."""
        self._last_words.discard(tell)

    def end(self) -> None:
        """Die."""
        self.alive = False
        for tell in list(self._last_words):
            tell()
        for task in list(self._tasks):
            task.cancel()

    def check(self) -> None:
        """Let only the living pass.

        Raises:
            asyncio.CancelledError: this life is over.
        """
        if not self.alive:
            raise asyncio.CancelledError

    def _adopt(self, task: asyncio.Task[Any]) -> None:
        _owners[task] = self
        self._tasks.add(task)
        if not self.alive:
            task.cancel()


def _make_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **given: Any
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **given)
    maker = asyncio.current_task(loop)
    if maker is not None and (owner := _owners.get(maker)) is not None:
        owner._adopt(task)  # noqa: SLF001  (of the same file)
    return task
