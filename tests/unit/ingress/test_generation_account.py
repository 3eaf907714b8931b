"""What a generation adds to an account, whatever order its frames came in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.ingress import request_account, streams
from serve_app.ingress.generation_account import book_generation
from serve_app.ingress.request_account import RequestAccount
from serve_app.ingress.streams import TokenStream
from serve_app.messages.generation import (
    Begun,
    Finished,
    FinishReason,
    GenerateRequest,
    SamplingParams,
)

OPENED = 1000.0


class Clock:
    now = OPENED


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    told = SimpleNamespace(
        perf_counter=lambda: made.now, monotonic=lambda: made.now, time=lambda: 0.0
    )
    monkeypatch.setattr(streams, "time", told)
    monkeypatch.setattr(request_account, "time", told)
    return made


@pytest.fixture
def account() -> RequestAccount:
    return RequestAccount(arrived=OPENED - 1)


def stream() -> TokenStream:
    return TokenStream(GenerateRequest("r", "", 0, (1,), SamplingParams(max_tokens=9, seed=1)))


def ended(queue_s: float, prefill_s: float, decode_s: float) -> Finished:
    return Finished(0, FinishReason.STOP, 1, 0, 3, queue_s, prefill_s, decode_s)


def run(clock: Clock, made: TokenStream, *steps: tuple[float, Any]) -> TokenStream:
    """Let things arrive at seconds behind the opening."""
    for at, what in steps:
        clock.now = OPENED + at
        if isinstance(what, Begun):
            made.begin(what)
        elif isinstance(what, Finished):
            made.finish(what)
        else:
            made.moves += 1
            made.moved(what)
    return made


def times(account: RequestAccount) -> dict[str, tuple[float, float]]:
    return {
        one.name: (pytest.approx(one.transfer_s), pytest.approx(one.compute_s))
        for one in account.stages()
    }


def test_what_the_generator_did_not_take_is_the_way_there_and_back(
    clock: Clock, account: RequestAccount
) -> None:
    made = run(clock, stream(), (4, Begun(0, 0, 1, 2)), (10.5, ended(1, 2, 6)))
    book_generation(account, OPENED, [made])
    assert times(account) == {
        "submit": (1, 0),
        "queue": (0, 1),
        "prefill": (0, 2),
        "decode": (0.5, 6),
    }
    assert account.booked_s == pytest.approx(10.5)
    assert account.first_token_s == 5


def test_a_first_frame_that_was_late_leaves_no_negative_time(
    clock: Clock, account: RequestAccount
) -> None:
    made = run(clock, stream(), (5, Begun(0, 0, 1, 2)), (10, ended(1, 2, 6)))
    book_generation(account, OPENED, [made])
    assert times(account)["submit"] == (1, 0)
    assert times(account)["decode"] == (0, 6)
    assert account.booked_s == pytest.approx(10)


def test_a_reply_without_a_token_is_prefill_to_its_end(
    clock: Clock, account: RequestAccount
) -> None:
    book_generation(account, OPENED, [run(clock, stream(), (4, ended(1, 2.5, 0)))])
    assert times(account) == {
        "submit": (0.5, 0),
        "queue": (0, 1),
        "prefill": (0, 2.5),
        "decode": (0, 0),
    }
    assert account.first_token_s is None


def test_of_several_choices_the_last_to_end_is_followed(
    clock: Clock, account: RequestAccount
) -> None:
    first = run(clock, stream(), (2, Begun(0, 0, 0, 2)), (5, ended(0, 2, 3)))
    last = run(clock, stream(), (4, Begun(0, 0, 1, 1)), (9, ended(1, 1, 5)))
    book_generation(account, OPENED, [last, first])
    assert times(account)["submit"] == (2, 0)
    assert account.booked_s == pytest.approx(9)
    assert account.first_token_s == 3


def test_a_reply_that_moved_has_what_moving_took(clock: Clock, account: RequestAccount) -> None:
    made = run(clock, stream(), (4, Begun(0, 0, 1, 2)), (8, 3.0), (12, ended(0.25, 0.75, 1.5)))
    book_generation(account, OPENED, [made])
    assert times(account) == {
        "submit": (1, 0),
        "queue": (0, 1),
        "prefill": (0, 2),
        # What the first generator had decoded since nobody can tell any more.
        "decode": (0, 4),
        "move": (3, 1),
    }
    assert account.booked_s == pytest.approx(12)
    assert account.moves == 1


def test_a_move_before_the_first_token_is_no_part_of_the_way(
    clock: Clock, account: RequestAccount
) -> None:
    made = run(clock, stream(), (2, 2.0), (6, Begun(0, 0, 1, 2)), (9, ended(1, 2, 3)))
    book_generation(account, OPENED, [made])
    assert times(account)["submit"] == (1, 0)
    assert times(account)["move"] == (2, 0)
    assert times(account)["decode"] == (0, 3)
    assert account.booked_s == pytest.approx(9)


def test_a_stream_of_which_nothing_was_reported_is_left_to_the_remainder(
    clock: Clock, account: RequestAccount
) -> None:
    made = run(clock, stream(), (4, Begun(0, 0, 1, 2)))
    book_generation(account, OPENED, [made])
    assert account.stages() == ()
    assert account.first_token_s == 5
    with pytest.raises(ValueError, match="not finished"):
        _ = made.times


def test_what_comes_behind_the_last_token_is_writing(clock: Clock, account: RequestAccount) -> None:
    book_generation(account, OPENED, [run(clock, stream(), (4, ended(0, 4, 0)))])
    account.book("commit", transfer_s=1)
    clock.now = OPENED + 7
    closed = account.snapshot()
    assert [(one.name, one.total_s) for one in closed.stages][-1] == ("write", 2)
    assert closed.total_s == 8
    assert closed.unaccounted_s == pytest.approx(1)  # before the opening


def test_an_account_is_closed_once_by_the_last_who_holds_it() -> None:
    closed: list[RequestAccount] = []
    account = RequestAccount(closed=closed.append)
    account.hold()
    account.release()
    assert closed == []
    account.release()
    assert closed == [account]
