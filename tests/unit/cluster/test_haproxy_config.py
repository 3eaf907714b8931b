"""What is amended in the configuration that Serve itself writes, by Serve's own code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serve_app.cluster.haproxy_config import Amendments, admin_socket, has_routes, standby
from serve_app.cluster.haproxy_launcher import haproxy_binary

METRICS, STATISTICS, HTTP = 4101, 4404, 44041
AMENDMENTS = Amendments(head_ms=1500, on_loopback=(METRICS, STATISTICS))


@pytest.fixture
def api(tmp_path: Path) -> HAProxyApi:
    config = HAProxyConfig(
        http_options=HTTPOptions(host="0.0.0.0", port=HTTP),  # noqa: S104
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "server-state"),
        metrics_socket_path=str(tmp_path / "metrics.sock"),
        metrics_port=METRICS,
        stats_port=STATISTICS,
    )
    return HAProxyApi(config, config_file_path=str(tmp_path / "haproxy.cfg"))


def written(api: HAProxyApi, *, application: bool) -> str:
    """Return what Serve writes."""
    server = ServerConfig("replica", "127.0.0.1", 30_000)
    backend = BackendConfig("http-parley", "/", servers=[server], app_name="parley")
    api.set_backend_configs({"http-parley": backend} if application else {})
    api._generate_config_file_internal()
    return Path(api.config_file_path).read_text()


def amended(api: HAProxyApi, *, application: bool = True) -> str:
    refusal = Path(api.config_file_path).with_name("refusal.http")
    refusal.write_bytes(b"HTTP/1.1 503 Busy\r\n\r\n")
    return AMENDMENTS.applied(written(api, application=application), str(refusal))


def lines(config: str) -> list[str]:
    return [line.strip() for line in config.splitlines()]


def taken(config: str, tmp_path: Path) -> str:
    """Return what HAProxy says of a configuration that it takes."""
    file = tmp_path / "checked.cfg"
    file.write_text(config)
    binary = haproxy_binary()
    assert binary is not None
    command = [binary, "-c", "-f", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return told.stderr


def test_only_the_service_itself_can_be_reached_from_elsewhere(api: HAProxyApi) -> None:
    before = lines(written(api, application=True))
    for line in (f"bind :{METRICS}", f"bind *:{STATISTICS}", f"bind *:{HTTP}"):
        assert line in before  # else there is nothing to amend
    after = [line for line in lines(amended(api)) if line.startswith("bind ")]
    assert after == [f"bind 127.0.0.1:{METRICS}", f"bind *:{HTTP}", f"bind 127.0.0.1:{STATISTICS}"]


def test_clients_are_told_in_parleys_words_and_no_head_is_waited_for_an_hour(
    api: HAProxyApi,
) -> None:
    config = lines(amended(api))
    for status in (502, 503, 504):
        assert f"errorfile {status} {Path(api.config_file_path).parent}/refusal.http" in config
    assert config[config.index("defaults") + 1] == "timeout http-request 1500ms"


def test_a_client_that_leaves_is_noticed(api: HAProxyApi) -> None:
    assert "option splice-request" in lines(written(api, application=True))
    assert "option splice-request" not in lines(amended(api))


def test_only_what_leaves_nothing_behind_is_sent_to_a_second_replica(api: HAProxyApi) -> None:
    config = lines(amended(api))
    assert [line for line in config if "retry-on" in line and "#" not in line] == [
        "retry-on conn-failure empty-response"
    ]
    place = config.index("http-request disable-l7-retry unless repeatable")
    assert config.index("frontend http_frontend") < place < config.index("backend default_backend")
    assert "/v1/chat/completions" in config[place - 1]
    assert "/v1/responses" not in config[place - 1]


def test_without_an_application_no_path_is_unknown(api: HAProxyApi) -> None:
    assert "return status 404" in written(api, application=False)
    config = amended(api, application=False)
    assert not has_routes(config)
    assert "return status 404" not in config
    assert has_routes(amended(api))


@pytest.mark.parametrize("application", [False, True])
def test_haproxy_takes_it_and_a_second_amendment_changes_nothing(
    api: HAProxyApi, tmp_path: Path, *, application: bool
) -> None:
    config = amended(api, application=application)
    taken(config, tmp_path)
    assert AMENDMENTS.applied(config, str(tmp_path / "refusal.http")) == config


def test_a_standby_serves_the_same_and_leaves_serves_own_sockets_alone(
    api: HAProxyApi, tmp_path: Path
) -> None:
    config = amended(api)
    assert admin_socket(config) == str(tmp_path / "admin.sock")
    stands_in = standby(config, str(tmp_path / "standby.sock"))
    taken(stands_in, tmp_path)
    assert admin_socket(stands_in) == str(tmp_path / "standby.sock")
    assert [line for line in lines(stands_in) if line.startswith("bind ")] == [f"bind *:{HTTP}"]
    assert "server-state" not in stands_in
    kept = [line for line in lines(config) if line.startswith(("server ", "use_backend ", "acl "))]
    assert [line for line in lines(stands_in) if line in kept] == kept
