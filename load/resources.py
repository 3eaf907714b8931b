"""What a cluster holds on to: memory, file descriptors, keys in Redis."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import psutil
import redis

from load.memory import Memory
from load.own_cluster import OwnCluster
from load.processor_time import kind_of
from serve_app.errors import ConfigError
from serve_app.state.server import RedisServer

__all__ = ["Resources", "Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held at one moment.

    Attributes:
        at: seconds since the first sample.
        memory: bytes by kind of process.
        descriptors: open file descriptors by kind of process.
        keys: keys in Redis.
    """

    at: float
    memory: dict[str, int]
    descriptors: dict[str, int]
    keys: int


class Resources:
    """Samples a cluster.

    Args:
        cluster: one that runs here, with a Redis of its own.

    Raises:
        ConfigError: it has no Redis of its own.
    """

    def __init__(self, cluster: OwnCluster) -> None:
        url = RedisServer(cluster.home).url()
        if url is None:
            msg = "The cluster has no Redis of its own; unset PARLEY_REDIS_URL to measure one that has."
            raise ConfigError(msg)
        self.samples: list[Sample] = []
        self._cluster = cluster
        self._memory = Memory(cluster.processes)
        self._redis = redis.Redis.from_url(url.get_secret_value())
        self._began = time.monotonic()

    def look(self) -> Sample:
        """Take a sample, and keep it."""
        descriptors: Counter[str] = Counter()
        for process in self._cluster.processes():
            try:
                descriptors[kind_of(process.cmdline())] += process.num_fds()
            except psutil.NoSuchProcess:
                continue  # it has ended in between
        sample = Sample(
            at=time.monotonic() - self._began,
            memory=self._memory.look(),
            descriptors=dict(descriptors.most_common()),
            keys=int(self._redis.dbsize()),
        )
        self.samples.append(sample)
        return sample
