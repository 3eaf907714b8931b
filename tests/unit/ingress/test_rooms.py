"""What an ingress knows of the generators' room, so that it refuses by itself, and only what has none."""

from __future__ import annotations

from collections import Counter

import pytest

from serve_app.errors import QueueFull
from serve_app.ingress import rooms as rooms_module
from serve_app.ingress.rooms import FRESH_S, FULL_FOR_S, Rooms
from serve_app.messages.generation import Room


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rooms_module, "time", clock)
    return clock


@pytest.fixture
def own() -> Counter[str]:
    """This ingress' own streams by replica."""
    return Counter()


@pytest.fixture
def up() -> list[str]:
    return ["a"]


@pytest.fixture
def rooms(clock: Clock, own: Counter[str], up: list[str]) -> Rooms:
    return Rooms(own.__getitem__, lambda: up)


def places(rooms: Rooms) -> int:
    """Return how many places may be asked for at once."""
    count = 0
    while True:
        try:
            rooms.check(count + 1)
        except QueueFull:
            return count
        count += 1
        assert count < 1000


def test_others_own_and_promised_streams_take_places(rooms: Rooms, own: Counter[str]) -> None:
    rooms.report("a", Room(places=10, others=3, drain_s=2.0))
    own["a"] = 4
    assert places(rooms) == 3
    with rooms.promise(2):
        assert places(rooms) == 1
        with pytest.raises(QueueFull):
            rooms.promise(2).__enter__()
        with rooms.promise():
            assert places(rooms) == 0
    assert places(rooms) == 3


def test_a_promise_ends_however_the_request_does(rooms: Rooms) -> None:
    rooms.report("a", Room(1, 0, 2.0))

    def request(error: BaseException) -> None:
        with rooms.promise():
            assert places(rooms) == 0
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            request(error())
        assert places(rooms) == 1


def test_a_refusal_says_when_the_queue_is_worked_off(rooms: Rooms, up: list[str]) -> None:
    up.append("b")
    rooms.report("a", Room(1, 1, 7.3))
    rooms.report("b", Room(1, 1, 5.2))
    with pytest.raises(QueueFull, match="try again in 6 s") as refused:
        rooms.check()
    assert refused.value.retry_after == 6


def test_a_replica_that_has_said_nothing_may_have_room(rooms: Rooms, up: list[str]) -> None:
    rooms.check(1000)
    rooms.report("a", Room(1, 1, 1.0))
    assert places(rooms) == 0
    up.append("new")
    rooms.check()
    up.remove("new")
    assert places(rooms) == 0
    rooms.forget("a")
    rooms.check()


def test_where_nobody_knows_who_is_up_no_report_refuses(clock: Clock) -> None:
    rooms = Rooms(lambda _: 0)
    rooms.report("a", Room(1, 1, 1.0))
    rooms.check()
    assert rooms.full() == []


def test_what_others_had_long_ago_refuses_nobody(
    rooms: Rooms, clock: Clock, own: Counter[str]
) -> None:
    rooms.report("a", Room(places=3, others=3, drain_s=1.0))
    assert places(rooms) == 0
    clock.now += FRESH_S + 0.1
    assert places(rooms) == 3
    own["a"] = 3  # these are known whatever the replica says
    assert places(rooms) == 0


def test_a_full_queue_of_which_nothing_else_is_known_is_left_alone_for_a_moment(
    rooms: Rooms, clock: Clock
) -> None:
    rooms.refused(QueueFull("The queue is full.", retry_after=7.0))
    with pytest.raises(QueueFull, match="The queue is full") as refused:
        rooms.check()
    assert refused.value.retry_after == 7.0
    clock.now += FULL_FOR_S + 0.01
    rooms.check()


def test_who_knows_of_room_goes_there_whoever_was_refused(rooms: Rooms) -> None:
    rooms.report("a", Room(2, 1, 1.0))
    rooms.refused(QueueFull("The queue is full."))
    assert places(rooms) == 1


def test_full_replicas_are_told_apart_while_another_has_room(
    rooms: Rooms, up: list[str], own: Counter[str]
) -> None:
    up[:] = ["a", "b", "c"]
    rooms.report("a", Room(2, 2, 1.0))
    assert rooms.full() == ["a"]  # the others may have some
    rooms.report("b", Room(2, 0, 1.0))
    rooms.report("c", Room(2, 1, 1.0))
    own["c"] = 1
    assert rooms.full() == ["a", "c"]
    own["b"] = 2
    assert rooms.full() == []


def test_reports_of_replicas_that_are_gone_are_dropped(rooms: Rooms, up: list[str]) -> None:
    for number in range(5):
        up[:] = [f"r{number}"]
        rooms.report(f"r{number}", Room(1, 0, 1.0))
        rooms.check()
    assert list(rooms._reports) == ["r4"]
