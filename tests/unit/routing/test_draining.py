"""A replica hears that Serve is about to stop it before Serve waits for its calls to end."""

from __future__ import annotations

import pytest
from ray.serve._private import replica as serve_replica

from serve_app.routing.draining import when_draining


async def test_the_replica_is_told_before_serve_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    async def begin(replica: object) -> None:
        happened.append(f"{replica} ends")

    # The name is Serve's own: without it this fails.
    monkeypatch.setattr(serve_replica.Replica, "perform_graceful_shutdown", begin, raising=True)
    when_draining(lambda: happened.append("told"))
    await serve_replica.Replica.perform_graceful_shutdown("replica")
    assert happened == ["told", "replica ends"]
