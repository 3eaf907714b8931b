"""The log of a replica, put back behind each test."""

from __future__ import annotations

import builtins
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private import logging_utils
from replica_log import ReplicaLog


@pytest.fixture
def replica_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicaLog]:
    """The log of a replica; what is set up for it is put back."""
    serve, root = logging.getLogger("ray.serve"), logging.getLogger()
    # As in throughput mode, in which `parley up` runs Serve.
    monkeypatch.setattr(logging_utils, "RAY_SERVE_LOG_TO_STDERR", False)
    for target, name in ((builtins, "print"), (sys, "stdout"), (sys, "stderr")):
        monkeypatch.setattr(target, name, getattr(target, name))
    before = serve.handlers[:], serve.filters[:], serve.level, serve.propagate, root.handlers[:]
    yield ReplicaLog(tmp_path / "logs")
    for handler in serve.handlers:
        handler.close()
    serve.handlers, serve.filters, level, serve.propagate, root.handlers = before
    serve.setLevel(level)
    logging.getLogger("serve_app").setLevel(logging.NOTSET)
