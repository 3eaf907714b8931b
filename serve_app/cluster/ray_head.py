"""Ray on this machine: one head node, on loopback, behind a token, that joins nothing else."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cluster.haproxy_launcher import haproxy_binary
from serve_app.cluster.processes import MARK
from serve_app.cluster.ray_starter import AT_IMPORT, RayStarter
from serve_app.cluster.run_folder import RunFolder
from serve_app.errors import ConfigError
from serve_app.settings import Settings

if TYPE_CHECKING:
    from ray._private.parameter import RayParams

__all__ = ["PortTaken", "RayHead", "RayPorts", "without_client_server"]

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 200_000_000  # nothing large goes through it; Ray asks for at least 75 MB
_START_TIMEOUT_S = 120.0
_LAST_LINES = 15
# What Ray and gRPC say of a port that something else has.
_TAKEN = ("already in use", "The specified port is")


class PortTaken(ConfigError):
    """Ray did not start since a port was taken in between; others may be free."""


@dataclass(frozen=True, slots=True)
class RayPorts:
    """Ports that must be known before Ray starts.

    Attributes:
        gcs: Ray's control service.
        dashboard: dashboard and REST interface.
        client: needed by Ray's command line; nothing listens there.
        proxy_metrics: HAProxy's own metrics.
        proxy_stats: HAProxy's own statistics.
        fallback: Serve's own proxy, to which HAProxy turns while no replica is up.
    """

    gcs: int
    dashboard: int
    client: int
    proxy_metrics: int
    proxy_stats: int
    fallback: int


class RayHead:
    """Starts the head node of one run.

    Args:
        folder: the run's files.
        work_folder: short folder for Ray's session and the sockets.
        ports: where it listens.
        cpus: CPUs that Ray may hand out.
    """

    def __init__(self, folder: RunFolder, work_folder: Path, ports: RayPorts, *, cpus: int) -> None:
        self._folder = folder
        self._work_folder = work_folder
        self._ports = ports
        self._cpus = cpus

    @property
    def dashboard(self) -> str:
        """URL of the dashboard and the REST interface."""
        return f"http://{_LOOPBACK}:{self._ports.dashboard}"

    def environment(self, run_id: str, settings: Settings, redis_url: str) -> dict[str, str]:
        """Return the environment of every process of the run.

        Args:
            run_id: their mark.
            settings: those in effect; they travel in the deployed `args`, so the variables that
                made them are left out here and can't have their say twice.
            redis_url: a setting that is a secret and travels here, as encryption keys do.
        """
        sections = tuple(f"PARLEY_{name.upper()}_" for name in Settings.model_fields)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(sections)
            and name not in {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PROMETHEUS_MULTIPROC_DIR"}
        }
        given = settings.encryption.keys
        keys = {} if given is None else {"PARLEY_ENCRYPTION_KEYS": given.get_secret_value()}
        proxy = self._work_folder / "h"
        kept |= {
            MARK: run_id,
            # Keeps process titles out of the environment's memory, or the mark could not be read.
            "SPT_NOENV": "1",
            "PARLEY_HOME": str(self._folder.home),
            "PARLEY_REDIS_URL": redis_url,
            **AT_IMPORT,
            **keys,
            "RAY_AUTH_TOKEN_PATH": str(self._folder.token_file),
            "RAY_START_HOOK": f"{without_client_server.__module__}.{without_client_server.__name__}",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            # Serve's own proxy, too, has Parley's edge in front; see serve_app.ingress.edge.
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.ingress.edge:middlewares",
            # A proxy that dies is missed after three of these.
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
            # And one that starts on a busy machine is not given up: that would end `up` as well.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
            # Workers that wait for a task are there before the first one needs them.
            "RAY_enable_worker_prestart": "1",
            # Ray runs workers below everything else on the machine (at 15), but they are the service.
            "RAY_worker_niceness": "0",
            # What Ray does at rest it does on the engine's cores: look less often for changes, of
            # replicas (0.1 s by default) and of what processes take (5 s).
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
            "REPORTER_UPDATE_INTERVAL_MS": "30000",
            # Time for the proxy to hear that an Ingress replica is leaving; it hears within 0.3 s.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        }
        if binary := haproxy_binary():
            script = self._work_folder / "haproxy"
            self._write_haproxy_script(script, binary, settings.ingress.read_timeout_s)
            # A proxy that was replaced while streams ran through it must outlive them.
            longest_stream = int(settings.ingress.request_timeout_s) + 30
            kept |= {
                "RAY_SERVE_ENABLE_HA_PROXY": "1",
                "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
                "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
                "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
                "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
                "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
                "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
                "RAY_SERVE_HAPROXY_METRICS_PORT": str(self._ports.proxy_metrics),
                "RAY_SERVE_HAPROXY_STATS_PORT": str(self._ports.proxy_stats),
                "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self._ports.fallback),
                "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
                "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(longest_stream),
            }
        return kept

    def start(self, starter: RayStarter, environment: dict[str, str]) -> None:
        """Start Ray and return when its REST interface answers.

        Raises:
            PortTaken: something took one of the ports.
            ConfigError: Ray did not start; the sentence quotes what it said.
        """
        log = self._folder.start_log("ray-start")
        arguments = [
            *("--head", "--node-ip-address", _LOOPBACK, "--port", str(self._ports.gcs)),
            *("--dashboard-host", _LOOPBACK, "--dashboard-port", str(self._ports.dashboard)),
            *("--include-dashboard", "true", "--dashboard-agent-listen-port", "0"),
            *("--ray-client-server-port", str(self._ports.client)),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--temp-dir", str(self._work_folder / "ray")),
            *("--object-store-memory", str(_OBJECT_STORE_BYTES)),
            *("--num-cpus", str(self._cpus)),
            *("--include-log-monitor", "false", "--no-monitor"),
            *("--disable-usage-stats", "--log-style", "record"),
        ]
        try:
            code = starter.start(arguments, environment, log, timeout_s=_START_TIMEOUT_S)
        except TimeoutError:
            msg = f"Ray did not start within {_START_TIMEOUT_S:g} s; its output is in {log}."
            raise ConfigError(msg) from None
        if code != 0:
            text = log.read_text(errors="replace")
            said = text.strip().splitlines()[-_LAST_LINES:]
            msg = "Ray did not start; it said:\n" + "\n".join(said) + f"\nAll of it is in {log}."
            raise PortTaken(msg) if any(words in text for words in _TAKEN) else ConfigError(msg)
        self._folder.link_logs(self._work_folder)

    def _write_haproxy_script(self, script: Path, binary: str, read_timeout_s: float) -> None:
        launcher = [
            *(sys.executable, "-P", "-m", "serve_app.cluster.haproxy_launcher"),
            *("--binary", binary, "--head-ms", str(max(1, round(read_timeout_s * 1000)))),
            *("--on-loopback", str(self._ports.proxy_metrics), str(self._ports.proxy_stats)),
        ]
        script.write_text(f'#!/bin/sh\nexec {shlex.join(launcher)} -- "$@"\n')
        script.chmod(0o700)


def without_client_server(parameters: RayParams, head: bool) -> None:
    """Keep Ray from starting its client server, which nothing here uses.

    Ray calls this with the parameters of the node before it starts (RAY_START_HOOK).
    """
    del head
    parameters.ray_client_server_port = None
