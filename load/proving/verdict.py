"""The end of a run: let everything come to rest, and compare what clients were told with what is stored."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Iterable

from load.proving.clients import Clients
from load.proving.history import History
from load.proving.oracle import Oracle
from load.proving.requests import PATIENCE_S
from load.proving.standing import standing
from load.proving.stored import Place, Said, stored_of
from load.proving.telling import Telling
from load.proving.turns import Conversation, Turn
from serve_app.errors import StateUnavailable

__all__ = ["Verdict"]

_AT_ONCE = 8
_PAUSE_S = 0.05


class Verdict:
    """Looks at a run that is over.

    Args:
        clients: what was done.
        oracle: what the model must have said.
    """

    def __init__(self, clients: Clients, oracle: Oracle) -> None:
        self._clients = clients
        self._oracle = oracle
        self._history: History = clients.history

    async def find(self) -> None:
        """Come to rest, and note every promise that was broken."""
        clients = self._clients
        await clients.service.whole()
        # Of the turns whose clients know nothing, half are sent until they know, as a client would.
        await _all(self._insist(turn) for turn in clients.turns)
        await self._rest()
        places: dict[str, Place] = {}
        for tenant in clients.tenants:
            own = await self._stored(tenant.name)
            self._owned(tenant.name, own.values())
            places |= own
        self._markers(places)
        for place in places.values():
            self._replies(place)
        for turn in clients.turns:
            self._turn(turn, places)
        for conversation in clients.conversations:
            self._conversation(conversation, places)
        await _all(self._told_again(turn) for turn in clients.turns)
        await _all(self._sent_again(turn) for turn in clients.turns)
        await _all(self._gone(one) for one in clients.conversations if one.deleted_at is not None)

    async def _stored(self, tenant: str) -> dict[str, Place]:
        """Read all that is stored of a tenant; a Redis that nobody kills can be slow all the same."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await stored_of(self._clients.service, tenant)
            except StateUnavailable:
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _insist(self, turn: Turn) -> None:
        """Have a turn whose end is unknown told, or sent again under its key."""
        give_up = time.monotonic() + PATIENCE_S
        while not (turn.settled or turn.may_be_gone) and time.monotonic() < give_up:
            if turn.response is not None and turn.final is None:
                if await self._clients.read(turn) == "response_not_found":
                    return
            elif turn.key is not None and turn.loose_ends and turn.number % 2 == 0:
                if await self._clients.send(turn) in {"response_unfinished", "response_not_found"}:
                    return
            else:
                return
            await asyncio.sleep(_PAUSE_S)
        self._history.check(
            "every stream has one last event",
            turn.settled or turn.may_be_gone,
            f"{turn.name} has no end",
        )

    async def _rest(self) -> None:
        """Wait until no replica works on anything."""
        service = self._clients.service
        ingresses = list(service.deployment("Ingress").replicas.values())
        working = [replica.runs.drain() for replica in ingresses]  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*working)
                await service.deployment("Dialogue").idle()
        except TimeoutError:
            self._history.check(
                "every stream has one last event", kept=False, what="replicas come to no rest"
            )
            self._history.note("\n".join(["at work:", *standing()]))

    def _owned(self, tenant: str, places: Iterable[Place]) -> None:
        for place in places:
            for item in place.items.values():
                marked = item.text.startswith("[") and item.text.endswith("] go on")
                self._history.check(
                    "no tenant reads another's data",
                    not marked or item.text.startswith(f"[{tenant}:"),
                    f"{place.id} of {tenant} has {item.text!r}",
                )

    def _markers(self, places: dict[str, Place]) -> None:
        """Whatever was said once is stored once, wherever it is."""
        turns = self._clients.turns
        said = Counter(
            item.text
            for place in places.values()
            for item in place.items.values()
            if item.role == "user"
        )
        for turn in turns:
            if not turn.text:
                continue
            repeats = sum(other.says == turn.text for other in turns if not other.text)
            count = said[turn.text]
            self._history.check(
                "none is there twice under one key",
                count <= 1 + repeats,
                f"{turn.name} is stored {count} times, and may be {1 + repeats} times",
            )
            if turn.surely_absent:
                self._history.check(
                    "none is there twice under one key",
                    count <= repeats,
                    f"{turn.name} was reported as {turn.outcome}, and is stored",
                )
        for conversation in self._clients.conversations:
            for note in conversation.notes:
                count = said[note.text]
                self._history.check(
                    "none is there twice under one key",
                    count <= 1,
                    f"{note.key} is there {count} times",
                )
                if note.told_at is not None and not conversation.delete_asked:
                    self._history.check(
                        "no acknowledged turn is lost", count == 1, f"{note.key} is not stored"
                    )

    def _replies(self, place: Place) -> None:
        """Every reply is what the model says to the line before it, or the beginning of that."""
        by_response = {turn.response: turn for turn in self._clients.turns if turn.response}
        for response, items in place.turns().items():
            turn = by_response.get(response)
            self._history.check(
                "turns are totally ordered",
                [item.role for item in items] == ["user", "assistant"]
                and items[1].after == items[0].id,
                f"{response} has {[(item.role, item.after) for item in items]} in {place.id}",
            )
            if turn is None or items[-1].role != "assistant":
                continue
            reply = items[-1]
            cut_short = turn.outcome != "stored"
            foreseen = [
                self._oracle.reply(tuple((item.role, item.text) for item in line), turn.tokens)
                for line in _known_to(place.line(reply.after))
            ]
            self._history.check(
                "replies are what their line calls for",
                any(
                    reply.text == text or (cut_short and text.startswith(reply.text))
                    for text in foreseen
                ),
                f"{turn.name} says {reply.text!r} in place of {foreseen!r}",
            )

    def _turn(self, turn: Turn, places: dict[str, Place]) -> None:
        if turn.may_be_gone or not turn.settled or turn.response is None or turn.final is None:
            return
        place = next((one for one in places.values() if turn.response in one.responses), None)
        stored = None if place is None else place.responses[turn.response]
        self._history.check(
            "no acknowledged turn is lost",
            stored == turn.final,
            f"{turn.name} was told to have ended as {turn.final}, and is stored as {stored}",
        )
        items = [] if place is None else place.turns().get(turn.response, [])
        if turn.outcome == "stored":
            (output,) = turn.final["output"]
            told = [turn.says, output["content"][0]["text"]]
            self._history.check(
                "no acknowledged turn is lost",
                [item.text for item in items] == told and items[1].id == output["id"],
                f"{turn.name} was told to be {told}, and is stored as {items}",
            )
        elif items:
            self._history.check(
                "no acknowledged turn is lost",
                turn.interruptible,
                f"{turn.name} was cancelled, and is stored as {items}",
            )

    def _conversation(self, conversation: Conversation, places: dict[str, Place]) -> None:
        """Turns hang behind each other, those that came later behind those that were told before."""
        if conversation.delete_asked:
            if conversation.deleted_at is not None:
                self._history.check(
                    "what is deleted stays away",
                    conversation.id not in places,
                    f"{conversation.id} is stored, and was deleted",
                )
            return
        place = places.get(conversation.id)
        if not self._history.check(
            "no acknowledged turn is lost", place is not None, f"{conversation.id} is not stored"
        ):
            return
        if place is None:
            raise AssertionError
        ends = {response: place.line(items[-1].id) for response, items in place.turns().items()}
        if not conversation.branches:
            parents = Counter(item.after for item in place.items.values())
            self._history.check(
                "turns are totally ordered",
                max(parents.values(), default=1) == 1
                and all(item.current for item in place.items.values()),
                f"{conversation.id} has branches that nobody asked for: "
                f"{[(item.id, item.after, item.current) for item in place.items.values()]}",
            )
        told = [turn for turn in conversation.turns if turn.outcome == "stored"]
        for later in told:
            if later.replaces is not None or later.response not in ends:
                continue
            for earlier in told:
                if (
                    earlier.told_at is not None
                    and earlier.told_at < later.sent_at
                    and earlier.response in ends
                ):
                    self._history.check(
                        "turns are totally ordered",
                        _behind(earlier, later, ends) or self._turned(earlier, later, ends),
                        f"{later.name} was sent when {earlier.name} was told, and is not behind it",
                    )

    def _turned(self, earlier: Turn, later: Turn, ends: dict[str, list[Said]]) -> bool:
        """Say whether a turn that took another one's place has led the line away from an earlier one."""
        return any(
            turn.replaces is not None
            and turn.response in ends
            and (turn.told_at is None or turn.told_at > earlier.sent_at)
            and _behind(turn, later, ends)
            and not _behind(earlier, turn, ends)
            for turn in self._clients.turns
            if turn.conversation is later.conversation
        )

    async def _told_again(self, turn: Turn) -> None:
        """What is told of a response now is what every reader was told."""
        if turn.may_be_gone or turn.response is None or not turn.tellings:
            return
        if turn.outcome == "refused":
            return
        await self._clients.read(turn)
        for response in {telling.response for telling in turn.tellings}:
            whole = Telling(self._history, turn.name)
            whole.response = response
            if not await self._clients.follow_whole(turn, whole):
                continue
            for telling in turn.tellings:
                different = telling.compare(whole) if telling.response == response else None
                self._history.check(
                    "every resumed stream equals the original",
                    different is None,
                    f"{turn.name}: {different}",
                )

    async def _sent_again(self, turn: Turn) -> None:
        """Now that nothing is under way, a key gives what was made under it."""
        if turn.key is None or turn.may_be_gone or not turn.settled or turn.number % 2:
            return
        code = await self._clients.send(turn)
        self._history.check(
            "none is there twice under one key",
            code != "idempotency_in_flight",
            f"{turn.name} is still being made, as its key tells",
        )

    async def _gone(self, conversation: Conversation) -> None:
        status, body, _ = await self._clients.ask_until_answered(
            conversation.tenant,
            "GET",
            f"/v1/conversations/{conversation.id}",
            {},
            b"",
            repeatable=True,
        )
        self._history.check(
            "what is deleted stays away", status == 404, f"{conversation.id}: {status} {body!r}"
        )


def _known_to(line: list[Said]) -> list[list[Said]]:
    """Return what a reply may have known of a line: items appended while it was made go before its turn."""
    *before, question = line
    known = [line]
    while before and before[-1].response is None:
        before = before[:-1]
        known.append([*before, question])
    return known


def _behind(earlier: Turn, later: Turn, ends: dict[str, list[Said]]) -> bool:
    """Say whether one turn is on the line that ends in another."""
    return any(item.response == earlier.response for item in ends[later.response or ""])


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Do some things, a few at once."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def within(work: Awaitable[None]) -> None:
        async with room:
            await work

    await asyncio.gather(*(within(work) for work in works))
