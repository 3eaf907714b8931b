"""The Tokenizer's health check really encodes and decodes."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.constants import HEALTH_CHECK_METHOD

from serve_app.models.store import PreparedModel
from serve_app.settings import Settings
from serve_app.tokenization import deployment


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, bundled_int8: PreparedModel) -> Any:
    """The deployment as Serve constructs it, without Ray."""
    monkeypatch.setattr(deployment, "listen_on_node_address", lambda: None)
    monkeypatch.setattr(deployment, "served_model", lambda _: bundled_int8)
    return deployment.Tokenizer.func_or_class(Settings.load())  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", ["encode", "decode"])
async def test_a_tokenizer_that_gives_back_something_else_is_unhealthy(
    replica: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    check = getattr(replica, HEALTH_CHECK_METHOD)
    await check()
    works = getattr(replica._tokenizer, part)
    monkeypatch.setattr(replica._tokenizer, part, lambda *a, **b: works(*a, **b)[:-1])
    with pytest.raises(RuntimeError, match="no longer gives back"):
        await check()
