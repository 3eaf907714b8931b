"""Starting a run, step by step; whatever goes wrong, nothing of it stays."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from serve_app.cluster.deploy_file import APPLICATION, Deployment, without_inherited
from serve_app.cluster.guard import Guard
from serve_app.cluster.ports import free_ports, require_free
from serve_app.cluster.processes import end_marked, marked_processes
from serve_app.cluster.ray_head import PortTaken, RayHead, RayPorts
from serve_app.cluster.ray_starter import RayStarter
from serve_app.cluster.readiness import await_ready
from serve_app.cluster.redis_keeper import RedisKeeper
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.cluster.serve_api import ServeApi
from serve_app.cluster.steps import Steps
from serve_app.cluster.teardown import end_run
from serve_app.errors import ConfigError
from serve_app.models.store import PreparedModel
from serve_app.routing.pools import Pool
from serve_app.routing.serving import prepare_served, require_engine, require_servable
from serve_app.state.connection import RedisPool, named_url
from serve_app.state.sealing import key_file, open_seal
from serve_app.state.server import RedisServer, find_redis_server
from serve_app.telemetry.tracing import require_exporter

__all__ = ["follow", "start"]

# On one machine the proxy finds replicas at 127.0.0.1, so they must listen there too.
_HOSTS = ("127.0.0.1", "0.0.0.0")  # noqa: S104 - refused elsewhere while there is no API key
_ROOM_BYTES = 256 << 20
_FOLLOW_S = 3.0
_GRACE_S = 2.0
_LOST_AFTER = 5


def start(
    home: Path, deployment: Deployment, guard: Guard, starter: RayStarter, steps: Steps
) -> RunState:
    """Prepare the models, start Redis and Ray, deploy, and wait until requests are served.

    Args:
        home: PARLEY_HOME.
        deployment: what to run.
        guard: cleans up if this process is killed.
        starter: starts Ray.
        steps: told about each step.

    Returns:
        The state of the run.

    Raises:
        ConfigError: nothing serves the model's form, nothing sends traces, something runs here already, a port is busy, or
            a part does not start.
        ModelError: the model can't be had or prepared.
        TensorRTEngineError: it is to run on a GPU, and has no engine for that.
        StateUnavailable: Redis does not start.
        OSError: the disk is full or a folder can't be written.
    """
    machines = {
        pool.deployment: require_servable(pool.settings)
        for model in deployment.models
        for pool in model.pools
    }
    require_exporter(deployment.settings.telemetry)
    folder = RunFolder(home)
    with folder.locked():
        folder.create()
        _clear_leftovers(folder, steps)
        _require_address(deployment)
        _require_redis(deployment)
        _require_keys(home, deployment, steps)
        models = _prepare_models(home, deployment, steps)
        for prepared in models:
            machine = machines[prepared.pool.deployment]
            if machine is not None:
                require_engine(prepared.model, machine, prepared.pool.settings)
        names = _names(deployment, models)
        folders = tuple(dict.fromkeys(str(prepared.model.path) for prepared in models))
        work_folder = folder.work_folder()
        _require_room(home, work_folder)
        folder.clear_sessions(work_folder)
        head = _head(folder, work_folder, deployment)
        state = RunState(
            run_id=guard.run_id,
            phase="starting",
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            began=time.time(),
            url=deployment.url,
            dashboard=head.dashboard,
            deploy_file=str(deployment.file.absolute()),
            model=names[0],
            further_models=names[1:],
            model_folder=folders[0],
            further_folders=folders[1:],
            own_redis=named_url(deployment.settings.redis) is None,
            drain_timeout_s=max(
                pool.settings.generator.drain_timeout_s
                for model in deployment.models
                for pool in model.pools
            ),
        )
        folder.save(state)
        try:
            state = _bring_up(folder, deployment, head, starter, state, steps)
        except BaseException:
            # Ctrl-C included: what was started must go, whatever stopped it.
            steps.end(well=False)
            end_run(folder, state, steps, drain=False)
            raise
        state = state.model_copy(update={"phase": "running"})
        folder.save(state)
        return state


def follow(home: Path, state: RunState, steps: Steps) -> None:
    """Watch a run until it ends or changes hands; bring its own Redis back if it dies.

    Returns when another command has ended the run.

    Raises:
        ConfigError: Ray is gone, or nothing can be learnt from it any more.
    """
    folder = RunFolder(home)
    redis = RedisKeeper(folder, steps) if state.own_redis else None
    wait = time.sleep if redis is None else redis.wait
    seen: dict[str, str] = {}
    unanswered = 0
    with ServeApi(state.dashboard, folder.token()) as api:
        while True:
            now = folder.state()
            if now is None or now.run_id != state.run_id or now.phase == "stopping":
                return
            if redis is not None:
                redis.look()
            if not marked_processes(state.run_id):
                msg = f"Ray has ended; its logs are in {folder.logs}."
                raise ConfigError(msg)
            try:
                applications = api.details()["applications"]
                unanswered = 0
            except ConfigError:
                unanswered += 1
                if unanswered >= _LOST_AFTER:
                    raise
                time.sleep(_FOLLOW_S)
                continue
            deployments = applications.get(APPLICATION, {}).get("deployments", {})
            for name, one in deployments.items():
                running = sum(replica["state"] == "RUNNING" for replica in one["replicas"])
                line = f"{name}: {one['status'].lower()}, {running} of {one['target_num_replicas']} replicas"
                if seen.get(name, line) != line:
                    steps.note(line)
                seen[name] = line
            wait(_FOLLOW_S)


def _require_room(*folders: Path) -> None:
    # What Redis and Ray say on a full disk is of no use to anybody.
    for folder in folders:
        free = shutil.disk_usage(folder).free
        if free < _ROOM_BYTES:
            msg = (
                f"The disk of {folder} has {free >> 20} MB left; Redis, Ray and their logs need "
                f"{_ROOM_BYTES >> 20} MB. Make room there and start again."
            )
            raise ConfigError(msg)


def _clear_leftovers(folder: RunFolder, steps: Steps) -> None:
    state = folder.state()
    if state is None:
        return
    if state.phase == "running" and marked_processes(state.run_id):
        msg = f"Parley runs already, at {state.url}; `parley down` ends it."
        raise ConfigError(msg)
    # Nobody else is at it, or the lock would be taken: an earlier command was killed.
    steps.begin("Ending what an earlier run has left")
    ended = end_run(folder, state, steps, drain=False)
    steps.note(f"Ended {ended} processes of an earlier run that was killed.")


def _require_address(deployment: Deployment) -> None:
    if deployment.host not in _HOSTS:
        msg = (
            f"`parley up` listens on {_HOSTS[0]}, or on {_HOSTS[1]} for every interface; "
            f"it can't on {deployment.host}."
        )
        raise ConfigError(msg)
    require_free(deployment.host, deployment.port)


def _require_redis(deployment: Deployment) -> None:
    # Preparing the model takes a while, and Ray as long again, which would both be in vain.
    settings = deployment.settings.redis
    url = named_url(settings)
    if url is None:
        find_redis_server()
    else:
        RedisPool(url, settings)


def _require_keys(home: Path, deployment: Deployment, steps: Steps) -> None:
    settings = deployment.settings.encryption
    if settings.enabled and settings.keys is None:
        file = key_file(settings, home)
        if file.ensure():
            steps.note(
                f"Made the key that conversations are encrypted with: {file.file}. Keep a copy."
            )
    open_seal(settings, home)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What one pool computes with."""

    pool: Pool
    model: PreparedModel


def _prepare_models(home: Path, deployment: Deployment, steps: Steps) -> list[_Prepared]:
    prepared = []
    for model in deployment.models:
        for pool in model.pools:
            what = pool.settings.model
            name = f" {model.key}" if model.key else ""
            steps.begin(f"Preparing the model{name} ({what.precision})")
            prepared.append(_Prepared(pool, prepare_served(home, pool.settings, steps.update)))
    return prepared


def _names(deployment: Deployment, prepared: list[_Prepared]) -> tuple[str, ...]:
    """Return the names that clients use, the first model's first.

    Raises:
        ConfigError: two models have one name.
    """
    own = {each.pool.deployment: each.model.manifest.name for each in prepared}
    names = tuple(
        model.settings.model.name or own[model.pools[0].deployment] for model in deployment.models
    )
    if len(set(names)) < len(names):
        msg = f"Two models have one name ({', '.join(names)}): set model.name, or a name in models.also."
        raise ConfigError(msg)
    return names


def _bring_up(
    folder: RunFolder,
    deployment: Deployment,
    head: RayHead,
    starter: RayStarter,
    state: RunState,
    steps: Steps,
) -> RunState:
    url = named_url(deployment.settings.redis)
    if url is None:
        steps.begin("Starting Redis")
        url = RedisServer(folder.home).start()
    steps.begin("Starting Ray")

    def environment(head: RayHead) -> dict[str, str]:
        return head.environment(state.run_id, deployment.settings, url.get_secret_value())

    given = environment(head)
    try:
        head.start(starter, given)
    except PortTaken:
        steps.note("A port that was free is taken by now: starting Ray again with others.")
        end_marked(state.run_id, grace_s=_GRACE_S)
        head = _head(folder, folder.work_folder(), deployment)
        state = state.model_copy(update={"dashboard": head.dashboard})
        folder.save(state)
        given = environment(head)
        with RayStarter(state.run_id) as another:
            head.start(another, given)
    steps.begin("Deploying")
    with ServeApi(state.dashboard, folder.token()) as api:
        steps.update("starting Serve")
        api.deploy(without_inherited(deployment.config, given))
        await_ready(api, state.url, folder, steps)
    return state


def _head(folder: RunFolder, work_folder: Path, deployment: Deployment) -> RayHead:
    ports = RayPorts(*free_ports(len(fields(RayPorts))))
    return RayHead(folder, work_folder, ports, cpus=deployment.cpus)
