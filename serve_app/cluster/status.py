"""What runs in a home right now: deployments, replicas, model, Redis, load."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serve_app.cluster.deploy_file import APPLICATION
from serve_app.cluster.processes import marked_processes, memory_bytes
from serve_app.cluster.readiness import FAILED, last_sentence
from serve_app.cluster.run_folder import RunFolder, RunState
from serve_app.cluster.serve_api import ServeApi
from serve_app.errors import ParleyError
from serve_app.state.server import RedisServer

__all__ = ["ClusterStatus", "DeploymentStatus", "look", "serving"]

_TIMEOUT_S = 5.0
_METRIC_PREFIX = "parley_"
# What a process takes of the machine is in the processes' row; the rest is for graphs.
_LOAD = frozenset(
    f"{_METRIC_PREFIX}{name}"
    for name in (
        "kv_cache_tokens",
        "num_requests_running",
        "num_requests_waiting",
        "queued_prompt_tokens",
        "requests_in_progress",
        "slots",
    )
)
_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_OWN_UP = "own, up"
_OWN_DOWN = "own, down"
_NO_KEY = "only with an API key; set PARLEY_API_KEY"
_WRONG_KEY = "PARLEY_API_KEY is not accepted; `parley key list` shows the keys that are"


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """One deployment.

    Attributes:
        name: Ingress, Dialogue, Tokenizer or Generator, with a model's or a pool's key behind it.
        status: Serve's word for it, such as HEALTHY or UPDATING.
        running: replicas that serve.
        target: replicas that there should be.
        pids: process ids of the replicas.
        message: what is wrong, if something is.
    """

    name: str
    status: str
    running: int
    target: int
    pids: tuple[int, ...]
    message: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What was seen at one moment.

    Attributes:
        phase: "stopped", "starting", "running", "stopping", or "lost" for a run whose processes are
            gone.
        url: where HTTP is served.
        dashboard: Ray's dashboard.
        model: name of the served model, the first of them.
        further_models: names of the others.
        deploy_file: the file it was started from.
        logs: folder of the logs.
        began: when the run began, Unix seconds.
        processes: how many processes it has.
        memory_bytes: their resident memory, each shared page counted once.
        redis: "own, up", "own, down" or "external".
        ready: whether `GET /ready` says that requests are served.
        parts: what it says about the parts.
        deployments: in Serve's order.
        load: gauges of `GET /metrics` that tell it, summed over their labels.
        load_refused: why the load may not be seen, if so; all may be well nevertheless.
        problems: sentences about what is amiss or could not be learnt.
    """

    phase: str
    url: str = ""
    dashboard: str = ""
    model: str = ""
    further_models: tuple[str, ...] = ()
    deploy_file: str = ""
    logs: str = ""
    began: float = 0.0
    processes: int = 0
    memory_bytes: int = 0
    redis: str = ""
    ready: bool = False
    parts: dict[str, Any] = field(default_factory=dict)
    deployments: tuple[DeploymentStatus, ...] = ()
    load: dict[str, float] = field(default_factory=dict)
    load_refused: str = ""
    problems: tuple[str, ...] = ()


def look(home: Path, api_key: str | None = None) -> ClusterStatus:
    """Return what runs in a home; what can't be learnt is said in `problems`.

    Args:
        home: PARLEY_HOME.
        api_key: shows the load where the service demands a key.

    Raises:
        ConfigError: the state file is not one of ours.
    """
    folder = RunFolder(home)
    state = folder.state()
    if state is None:
        return ClusterStatus("stopped")
    processes = marked_processes(state.run_id)
    problems: list[str] = []
    ready, parts = _ready(state.url, problems)
    redis = _redis(home, state)
    if redis == _OWN_DOWN:
        problems.append(_why_away(folder))
    elif parts.get("redis") == "down":
        # Where it was looked for is in the log only: other sentences reach the API's clients.
        problems.append(
            "Conversations can't be stored, for Redis does not answer; "
            f"{folder.logs}/serve/replica_parley_Dialogue_*.log says where and why."
        )
    load, load_refused = _load(state.url, api_key, problems)
    return ClusterStatus(
        phase="lost" if state.phase == "running" and not processes else state.phase,
        url=state.url,
        dashboard=state.dashboard,
        model=state.model,
        further_models=state.further_models,
        deploy_file=state.deploy_file,
        logs=str(folder.logs),
        began=state.began,
        processes=len(processes),
        memory_bytes=sum(map(memory_bytes, processes)),
        redis=redis,
        ready=ready,
        parts=parts,
        deployments=_deployments(folder, state, problems),
        load=load,
        load_refused=load_refused,
        problems=tuple(problems),
    )


def serving(home: Path) -> RunState | None:
    """Return the run of a home if it lives, be it starting, serving or ending.

    Raises:
        ConfigError: the state file is not one of ours.
    """
    state = RunFolder(home).state()
    if state is None or not (state.starter_alive or marked_processes(state.run_id)):
        return None
    return state


def _redis(home: Path, state: RunState) -> str:
    if not state.own_redis:
        return "external"
    return _OWN_UP if RedisServer(home).running() else _OWN_DOWN


def _why_away(folder: RunFolder) -> str:
    redis = RedisServer(folder.home)
    try:
        reason = folder.redis_trouble.read_text()
    except FileNotFoundError:
        reason = f"{redis.log_file} and {folder.start_log('watch')} may say why."
    return f"Conversations can't be stored, for Redis is away: {reason}"


def _deployments(
    folder: RunFolder, state: RunState, problems: list[str]
) -> tuple[DeploymentStatus, ...]:
    try:
        with ServeApi(state.dashboard, folder.token()) as api:
            application = api.details()["applications"].get(APPLICATION, {})
    except ParleyError as error:
        problems.append(error.message)
        return ()
    deployments = tuple(
        DeploymentStatus(
            name=one["name"],
            status=one["status"],
            running=sum(replica["state"] == "RUNNING" for replica in one["replicas"]),
            target=one["target_num_replicas"],
            pids=tuple(replica["pid"] for replica in one["replicas"] if replica["pid"]),
            message=one["message"],
        )
        for one in application.get("deployments", {}).values()
    )
    for one in deployments:
        # Replicas that are still to come are no problem as long as one serves: load brings them.
        if one.status in FAILED:
            problems.append(f"{one.name} is {one.status}: {last_sentence(one.message)}")
        elif one.running == 0 < one.target:
            problems.append(f"{one.name} is {one.status}, and none of its replicas serves.")
    return deployments


def _ready(url: str, problems: list[str]) -> tuple[bool, dict[str, Any]]:
    try:
        response = httpx.get(f"{url}/ready", timeout=_TIMEOUT_S, trust_env=False)
        content = response.json()
    except (httpx.HTTPError, ValueError) as error:
        problems.append(f"{url}/ready does not answer: {type(error).__name__}.")
        return False, {}
    ready = response.status_code == httpx.codes.OK
    if not ready:
        problems.append(f"{url}/ready answers {response.status_code}.")
    return ready, content if isinstance(content, dict) else {}


def _load(url: str, api_key: str | None, problems: list[str]) -> tuple[dict[str, float], str]:
    """Return the load, or why it may not be seen."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(f"{url}/metrics", headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        if response.status_code in _REFUSED:
            return {}, _WRONG_KEY if api_key else _NO_KEY
        response.raise_for_status()
        families = list(text_string_to_metric_families(response.text))
    except (httpx.HTTPError, ValueError) as error:
        problems.append(f"{url}/metrics does not answer: {type(error).__name__}.")
        return {}, ""
    load = {
        family.name.removeprefix(_METRIC_PREFIX): sum(sample.value for sample in family.samples)
        for family in families
        if family.type == "gauge" and family.name in _LOAD
    }
    return load, ""
