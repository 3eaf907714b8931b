"""A cluster for one measurement, in a home of its own: `parley up` before, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve_app.cluster.deploy_file import APPLICATION, default_deploy_file
from serve_app.cluster.ports import free_ports
from serve_app.cluster.processes import marked_processes
from serve_app.cluster.run_folder import RunFolder
from serve_app.cluster.serve_api import ServeApi
from serve_app.errors import ConfigError
from serve_app.settings import parley_home

__all__ = ["OwnCluster", "own_cluster"]

_START_S = 180.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class OwnCluster:
    """A cluster that serves.

    Attributes:
        url: of its API, with the version.
        run_id: mark of the processes that Ray has.
        pid: process id of `parley up`.
        home: its PARLEY_HOME.
    """

    url: str
    run_id: str
    pid: int
    home: Path

    def replicas(self, deployment: str) -> dict[str, int]:
        """Return how many replicas of a deployment Serve has, by their state.

        Raises:
            ConfigError: Serve can't be reached.
        """
        run = RunFolder(self.home)
        state = run.state()
        if state is None:
            msg = "The cluster has ended."
            raise ConfigError(msg)
        with ServeApi(state.dashboard, run.token()) as serve:
            deployments = serve.details()["applications"][APPLICATION]["deployments"]
        return dict(Counter(replica["state"] for replica in deployments[deployment]["replicas"]))

    def processes(self) -> list[psutil.Process]:
        """Return all that run: Ray's, `parley up` itself and what it has started, Redis too."""
        up = psutil.Process(self.pid)
        return list({*marked_processes(self.run_id), up, *up.children(recursive=True)})


@contextmanager
def own_cluster(
    settings: Mapping[str, str],
    *,
    replicas: int | None = 1,
    generator_scaling: Mapping[str, object] | None = None,
) -> Iterator[OwnCluster]:
    """Run `parley up` with settings of its own for as long as the context lasts.

    It listens on a free port and shares nothing with a Parley that runs here but the models, and
    the variables of the environment.

    Args:
        settings: variables of the environment, `PARLEY_SECTION_KEY`.
        replicas: each deployment has so many and keeps to it: another one that started in the middle
            would take the processors from what is measured. None leaves it to the deploy file.
        generator_scaling: keys of the Generator's `autoscaling_config` that are to be different.

    Raises:
        ConfigError: it doesn't start; the sentence quotes what it said.
    """
    models = parley_home() / "models"
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="parley-load-") as folder:
        home = Path(folder)
        (home / "models").symlink_to(models)
        log, deploy_file = home / "up.log", home / "deploy.yaml"
        deployed = yaml.safe_load(default_deploy_file().read_text("utf-8"))
        if replicas is not None:
            _keep_to(deployed, replicas)
        _scaling(deployed, "Generator").update(generator_scaling or {})
        deploy_file.write_text(yaml.safe_dump(deployed), "utf-8")
        (port,) = free_ports(1)
        run = RunFolder(home)
        with log.open("wb") as output:
            up = subprocess.Popen(
                [
                    *(sys.executable, "-m", "serve_app.cli", "up"),
                    *("--port", str(port), "--config", str(deploy_file)),
                ],
                env={**os.environ, "PARLEY_HOME": folder, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process, which then ends that one.
                start_new_session=True,
            )
        try:
            run_id = _await_start(up, run, log)
            yield OwnCluster(f"http://127.0.0.1:{port}/v1", run_id, up.pid, home)
        finally:
            up.send_signal(signal.SIGINT)
            up.wait()
            shutil.rmtree(run.work_folder())


def _keep_to(config: dict[str, Any], replicas: int) -> None:
    for application in config["applications"]:
        for deployment in application["deployments"]:
            deployment["autoscaling_config"] |= {
                "min_replicas": replicas,
                "max_replicas": replicas,
            }


def _scaling(config: dict[str, Any], name: str) -> dict[str, object]:
    """Return a deployment's autoscaling configuration."""
    found: dict[str, object] = next(
        deployment["autoscaling_config"]
        for application in config["applications"]
        for deployment in application["deployments"]
        if deployment["name"] == name
    )
    return found


def _await_start(up: subprocess.Popen[bytes], run: RunFolder, log: Path) -> str:
    """Wait until the cluster serves, and return its mark."""
    deadline = time.monotonic() + _START_S
    while (state := run.state()) is None or state.phase != "running":
        if up.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()
            msg = f"The cluster to measure did not start; `parley up` said:\n{said}"
            raise ConfigError(msg)
        time.sleep(_POLL_S)
    return state.run_id
