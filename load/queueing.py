"""How long requests wait for one of many servers: the Erlang C formula."""

from __future__ import annotations

import math

__all__ = ["least_servers", "wait_beyond"]


def wait_beyond(servers: int, erlangs: float, seconds: float, service_s: float) -> float:
    """Return the probability that a request waits for longer than some seconds.

    For arrivals that know nothing of each other and exponential service times (M/M/c):
    P(W > t) = C(c, a) · exp(-(c - a) · t / s), where C comes from Erlang's B by its recursion.
    Source: Kleinrock 1975, Queueing Systems I, section 3.5.

    Args:
        servers: c, servers.
        erlangs: a, arrivals per second times service time.
        seconds: t.
        service_s: s, seconds of service of one request on average.
    """
    if erlangs >= servers:
        return 1.0
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = erlangs * blocked / (server + erlangs * blocked)
    utilisation = erlangs / servers
    waits = blocked / (1.0 - utilisation * (1.0 - blocked))
    return waits * math.exp(-(servers - erlangs) * seconds / service_s)


def least_servers(
    erlangs: float, seconds: float, service_s: float, *, beyond: float, at_a_time: int
) -> int:
    """Return the fewest servers with which no more than a share of requests waits too long.

    Args:
        erlangs: arrivals per second times service time.
        seconds: how long is too long.
        service_s: seconds of service of one request on average.
        beyond: the share that may wait for longer, in (0, 1).
        at_a_time: servers come in groups of this size.
    """

    def enough(groups: int) -> bool:
        return wait_beyond(groups * at_a_time, erlangs, seconds, service_s) <= beyond

    low = math.floor(erlangs / at_a_time)  # these can't be enough: they are less than the work
    high = low + 1
    while not enough(high):
        low, high = high, high + max(1, (high - low) * 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * at_a_time
