"""The Ingress deployment as Serve constructs it: it refuses to start as an open door, and tells its health."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ingress_harness import service, settings_with
from ray.serve._private.constants import HEALTH_CHECK_METHOD

from serve_app.errors import ConfigError
from serve_app.ingress import deployment, edge
from serve_app.models.store import PreparedModel
from serve_app.routing import listening
from serve_app.routing.pools import FIRST
from serve_app.settings import Settings
from serve_app.state.keys import KeyRing
from serve_app.state.sealing import KeyFile

Construct = Callable[[Settings], Any]


@pytest.fixture
def construct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled_int8: PreparedModel
) -> Construct:
    """Construct a replica that other machines can reach; Ray is not there."""
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    monkeypatch.setenv("PARLEY_REDIS_URL", "redis://127.0.0.1:1/0")
    KeyFile(tmp_path / "encryption.json").ensure()
    monkeypatch.setenv(deployment.EDGE_VARIABLE, deployment.EDGE)
    monkeypatch.setattr(deployment, "listen_on_node_address", lambda: None)
    monkeypatch.setattr(deployment, "open_to_other_machines", lambda: True)
    monkeypatch.setattr(deployment, "served_model", lambda _: bundled_int8)
    monkeypatch.setattr(edge, "_limits", None)  # put back what the replica sets for its process
    handle = SimpleNamespace(options=lambda **_: handle)
    replica: Any = deployment.Ingress.func_or_class.__wrapped__  # type: ignore[attr-defined]

    def make(settings: Settings) -> Any:
        return replica(settings, handle, {FIRST: handle}, {FIRST: {"Generator": handle}})

    return make


def test_a_key_that_nobody_is_asked_for_does_not_close_the_door(
    construct: Construct, tmp_path: Path
) -> None:
    KeyRing(tmp_path / "keys.json").create("me", "default")
    with pytest.raises(ConfigError, match=r"auth\.required is false"):
        construct(settings_with(auth={"required": False}))
    construct(settings_with())


def test_without_a_key_the_door_stays_shut_unless_one_is_required(
    construct: Construct, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path}/keys\.json holds none"):
        construct(settings_with())
    construct(settings_with(auth={"required": True}))


def test_on_loopback_nobody_needs_a_key(
    construct: Construct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "open_to_other_machines", lambda: False)
    construct(settings_with())
    construct(settings_with(auth={"required": False}))


def test_an_ingress_without_its_edge_refuses_to_start(
    construct: Construct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(deployment.EDGE_VARIABLE)
    with pytest.raises(ConfigError, match=r"runtime_env\.env_vars"):
        construct(settings_with(auth={"required": True}))


def test_an_ingress_that_no_longer_watches_its_generators_is_unhealthy(
    construct: Construct, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = construct(settings_with(auth={"required": True}))
    check = getattr(replica, HEALTH_CHECK_METHOD)
    check()
    ended = SimpleNamespace(done=lambda: True)
    monkeypatch.setattr(replica._services.models.first.generators, "_watchdog", ended)
    with pytest.raises(RuntimeError, match="watch"):
        check()


@pytest.mark.parametrize(
    ("host", "is_open"),
    [
        ("127.0.0.1", False),
        ("127.0.0.9", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),  # noqa: S104
        ("::", True),
        ("192.168.1.5", True),
        ("example.org", True),
    ],
)
def test_any_address_but_loopback_is_open(
    monkeypatch: pytest.MonkeyPatch, host: str, is_open: bool
) -> None:
    config = SimpleNamespace(remote=lambda: SimpleNamespace(host=host))
    client = SimpleNamespace(_controller=SimpleNamespace(get_http_config=config))
    monkeypatch.setattr(listening, "_get_global_client", lambda: client)
    monkeypatch.setattr(listening.ray, "get", lambda answer: answer)
    assert listening.open_to_other_machines() is is_open


@pytest.mark.parametrize(
    ("required", "has_key", "status"),
    [(True, False, 401), (True, True, 401), (False, True, 200), (None, True, 401)],
)
def test_who_is_asked_for_a_key_is_what_auth_required_says(
    bundled_tokenizer: Path, tmp_path: Path, required: bool | None, has_key: bool, status: int
) -> None:
    if has_key:
        KeyRing(tmp_path / "keys.json").create("me", "default")
    settings = settings_with(auth={"required": required})
    with service(bundled_tokenizer, tmp_path, settings=settings) as running:
        assert httpx.get(f"{running.url}/v1/models").status_code == status
