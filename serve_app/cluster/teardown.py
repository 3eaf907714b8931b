"""Ending a run: replies first, then every process, then Redis; nothing stays."""

from __future__ import annotations

import time
from pathlib import Path

from serve_app.cluster.deploy_file import APPLICATION
from serve_app.cluster.processes import end_marked, marked_processes
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.cluster.serve_api import ServeApi
from serve_app.cluster.steps import Steps
from serve_app.errors import ParleyError
from serve_app.settings import drain_flag
from serve_app.state.server import RedisServer

__all__ = ["end_run", "stop"]

# Workers end within a fraction of it. What takes longer is Ray's own control service and node
# manager, which wait for peers that a single machine doesn't have.
_GRACE_S = 2.0
_POLL_S = 0.2
# What Serve needs to end replicas once they have nothing left to do.
_WITHDRAWAL_S = 30.0


def stop(home: Path, steps: Steps, *, drain: bool = True) -> int | None:
    """End whatever runs in a home, also what a killed start or a crash has left.

    Args:
        home: PARLEY_HOME.
        steps: told what is being ended.
        drain: let running replies end first.

    Returns:
        How many processes were ended, or None when nothing ran.

    Raises:
        ConfigError: another command is starting or stopping at the same time.
        StateUnavailable: Redis does not end.
    """
    folder = RunFolder(home)
    with folder.locked():
        state = folder.state()
        if state is None:
            # Only a Redis can be without a run: somebody removed the state file.
            return 1 if RedisServer(home).stop() else None
        return end_run(folder, state, steps, drain=drain and state.phase == "running")


def end_run(folder: RunFolder, state: RunState, steps: Steps, *, drain: bool) -> int:
    """End a run; the caller holds the folder's lock.

    Returns:
        How many processes were ended.

    Raises:
        StateUnavailable: Redis does not end.
    """
    folder.save(state.model_copy(update={"phase": "stopping"}))
    if drain and marked_processes(state.run_id):
        steps.begin("Letting running replies end")
        _drain(folder, state, steps)
    steps.begin("Ending Ray")
    ended = end_marked(state.run_id, grace_s=_GRACE_S)
    if state.own_redis:
        # Last, because replicas that are ending still store their turns.
        steps.begin("Ending Redis")
        ended += int(RedisServer(folder.home).stop())
    folder.forget()
    steps.end()
    return ended


def _drain(folder: RunFolder, state: RunState, steps: Steps) -> None:
    deadline = time.monotonic() + state.drain_timeout_s
    drain_flag(folder.home).touch()
    try:
        with ServeApi(state.dashboard, folder.token()) as api:
            # First the requests, while all deployments are there: Serve ends them side by side, and
            # a turn that has no Dialogue left to be stored by would fail.
            while time.monotonic() < deadline and (left := _requests_in_progress(folder)):
                steps.update(f"{left} requests are left")
                time.sleep(_POLL_S)
            api.withdraw()
            deadline = time.monotonic() + _WITHDRAWAL_S
            while time.monotonic() < deadline and (left := _replicas(api)):
                steps.update(f"{left} replicas are left")
                time.sleep(_POLL_S)
    except ParleyError as error:
        # Serve is broken: that is no reason to leave its processes running.
        steps.note(f"Running replies could not be waited for: {error}")
    finally:
        drain_flag(folder.home).unlink(missing_ok=True)


def _requests_in_progress(folder: RunFolder) -> int:
    # The replicas' own figures, read where they write them: HTTP may ask for a key.
    from serve_app.telemetry.process_metrics import exposition, metrics_folder

    if not folder.metrics.is_dir():
        return 0
    name = "parley_requests_in_progress "
    lines = exposition(metrics_folder(folder.home)).decode().splitlines()
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


def _replicas(api: ServeApi) -> int:
    application = api.details()["applications"].get(APPLICATION, {})
    return sum(len(one["replicas"]) for one in application.get("deployments", {}).values())
