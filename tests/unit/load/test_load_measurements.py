from __future__ import annotations

import pytest

from load.measurements import Level, Percentiles, Reply, TokenCounts


def reply(*arrivals: float, sent_at: float = 0.0, **known: object) -> Reply:
    made = Reply(sent_at=sent_at)
    for now in arrivals:
        made.arrived(now)
    for name, value in known.items():
        setattr(made, name, value)
    return made


def level(replies: list[Reply], wall_s: float = 2.0) -> Level:
    return Level.of(replies, concurrency=4, conversations=2, wall_s=wall_s, cpu_s=0.5)


def test_percentiles_lie_between_the_neighbours() -> None:
    # Of 1 ms to 11 ms, the place of p is p / 100 * 10 behind the first.
    measured = Percentiles.of([number / 1000 for number in range(11, 0, -1)])
    assert measured is not None
    assert measured.p50 == pytest.approx(6.0)
    assert measured.p95 == pytest.approx(10.5)
    assert measured.p99 == pytest.approx(10.9)


def test_nothing_has_no_percentiles() -> None:
    assert Percentiles.of([]) is None


def test_the_first_arrival_is_the_ttft_and_the_others_are_gaps() -> None:
    one = reply(10.2, 10.3, 10.7, sent_at=10.0)
    assert one.arrivals == 3
    assert list(one.gaps) == pytest.approx([0.1, 0.4])
    measured = level([one])
    assert measured.ttft_ms is not None
    assert measured.ttft_ms.p50 == pytest.approx(200.0)
    assert measured.inter_token_ms is not None
    assert measured.inter_token_ms.p50 == pytest.approx(250.0)


def test_what_an_earlier_turn_left_is_all_but_its_last_token() -> None:
    first = TokenCounts(prompt=30, cached=16, completion=10)
    assert first.after(None) == first
    assert TokenCounts(60, 32, 10).after(first) == TokenCounts(60, 32, 10, held=39, spared=32)
    assert TokenCounts(60, 48, 10).after(first) == TokenCounts(60, 48, 10, held=39, spared=39)
    # A history that was cut holds no more than there is of it.
    assert TokenCounts(20, 16, 10).after(first) == TokenCounts(20, 16, 10, held=20, spared=16)


def test_a_level_adds_up_what_came_whole() -> None:
    replies = [
        reply(0.1, 0.2, tokens=TokenCounts(prompt=10, cached=4, completion=5)),
        reply(0.3, tokens=TokenCounts(prompt=20, cached=8, completion=7, held=14, spared=6)),
        reply(0.3, tokens=TokenCounts(prompt=20, cached=8, completion=7, held=10, spared=8)),
        reply(0.1, 9.0, tokens=TokenCounts(prompt=99, cached=99, completion=99), error="cut"),
        reply(error="cut"),
        reply(error="503 overloaded"),
    ]
    measured = level(replies)
    assert measured.replies == 3
    assert measured.errors == {"cut": 2, "503 overloaded": 1}
    assert measured.tokens == TokenCounts(50, 20, 19, held=24, spared=14)
    assert measured.arrivals == 4
    assert measured.tokens_per_s == pytest.approx(9.5)
    assert measured.requests_per_s == pytest.approx(1.5)
    assert measured.client_cpu == pytest.approx(0.25)
    assert measured.ttft_ms is not None
    assert measured.ttft_ms.p50 == pytest.approx(300.0)


def test_a_reply_without_usage_counts_by_its_arrivals() -> None:
    measured = level([reply(0.1, 0.2, 0.3)])
    assert measured.uncounted == 1
    assert measured.tokens.completion == 3
