"""The deploy file: read, checked strictly, and changed in memory by what the command line says."""

from __future__ import annotations

import copy
import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from serve_app.cluster.deploy_checks import APPLICATION, deploy_faults, position_of
from serve_app.errors import ConfigError
from serve_app.routing.pools import Served, served_models
from serve_app.settings import Settings, deploy_folder, parley_home
from serve_app.state.keys import KeyRing
from serve_app.yaml_lines import Fault, YamlFile, as_sentence, read_yaml

__all__ = [
    "APPLICATION",
    "Deployment",
    "Overrides",
    "default_deploy_file",
    "load_deployment",
    "read_deploy_file",
    "without_inherited",
]

_SERVE_HOST = "0.0.0.0"  # noqa: S104 - Serve's own default, which we refuse
_SERVE_PORT = 8000


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says instead of the file and the environment; None leaves a value alone.

    Attributes:
        host: address to listen on.
        port: port to listen on.
        replicas: generator replicas, at least.
        model: the model's source.
        precision: precision of its weights.
        redis_url: where state lives.
    """

    host: str | None = None
    port: int | None = None
    replicas: int | None = None
    model: str | None = None
    precision: str | None = None
    redis_url: str | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """A checked deploy file with everything that changes it already applied.

    Attributes:
        file: where it was read.
        config: what Serve is to deploy. Its `args` are the settings in effect, so that what runs
            stands in one place, whatever came from the file, the environment or the command line;
            only secrets are left out.
        settings: the same settings, with secrets.
        host: address that HTTP listens on.
        port: port that HTTP listens on.
        cpus: CPUs that Ray must believe in for every replica to find a place.
        gpus: GPUs that all replicas together take at most, parts of them as they are.
    """

    file: Path
    config: dict[str, Any]
    settings: Settings
    host: str
    port: int
    cpus: int
    gpus: float

    @property
    def models(self) -> tuple[Served, ...]:
        """What is served."""
        return served_models(self.settings)

    @property
    def url(self) -> str:
        """URL for a client on this machine."""
        host = "127.0.0.1" if self.host == _SERVE_HOST else self.host
        return f"http://{host}:{self.port}"


def default_deploy_file() -> Path:
    """Return `deploy/local.yaml`: inside an installed package, or beside it in the repository."""
    return deploy_folder() / "local.yaml"


def read_deploy_file(file: Path) -> YamlFile:
    """Read a deploy file and check it by itself, without this machine's environment and API keys.

    Raises:
        ConfigError: naming file, line and key of everything that is wrong.
    """
    source = read_yaml(file)
    if faults := [*source.repeated, *deploy_faults(source.data)]:
        raise source.refusal(faults)
    return source


def load_deployment(file: Path | None = None, overrides: Overrides | None = None) -> Deployment:
    """Read and check a deploy file.

    Args:
        file: the file; None takes `deploy/local.yaml`.
        overrides: what goes above the file and the environment.

    Raises:
        ConfigError: naming file, line and key of everything that is wrong.
    """
    source = read_deploy_file(file or default_deploy_file())
    overrides = overrides or Overrides()
    config = copy.deepcopy(source.data)
    position = position_of(config)
    application = config["applications"][position]
    settings = _settings(application.get("args") or {}, overrides)
    http = config.setdefault("http_options", {})
    if overrides.host is not None:
        http["host"] = overrides.host
    if overrides.port is not None:
        http["port"] = overrides.port
    if http.get("host") == "localhost":
        http["host"] = "127.0.0.1"  # the proxy and the replicas must not resolve it differently
    host, port = http.get("host", _SERVE_HOST), http.get("port", _SERVE_PORT)
    _refuse_open_door(source, host, settings, by_option=overrides.host is not None)
    if overrides.replicas is not None:
        _at_least(application, "Generator", overrides.replicas)
    application["args"] = settings.model_dump(
        mode="json", exclude={"redis": {"url"}, "encryption": {"keys"}}
    )
    models = served_models(settings)
    for model in models:  # Ray reserves a CPU for what the file doesn't mention
        for name in (model.tokenizer, *(pool.deployment for pool in model.pools)):
            _deployment(application, name)
    _share_cores(application, models)
    cpus = max(_cores(), math.ceil(_most(config["applications"], "num_cpus", 1.0)))
    gpus = _most(config["applications"], "num_gpus", 0.0)
    return Deployment(source.file, config, settings, host, port, cpus, gpus)


def without_inherited(config: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return a deploy file's content without the variables that all of Ray's processes have anyway.

    For a replica with variables of its own Ray starts a process that imports Ray, only to become
    the replica's and import it again.

    Args:
        config: the content.
        environment: what Ray's own processes are started with.
    """
    config = copy.deepcopy(config)
    for application in config["applications"]:
        for deployment in application.get("deployments", []):
            options = deployment.get("ray_actor_options") or {}
            runtime_env = options.get("runtime_env") or {}
            own = runtime_env.get("env_vars") or {}
            own = {name: value for name, value in own.items() if environment.get(name) != value}
            if own:
                runtime_env["env_vars"] = own
            else:
                runtime_env.pop("env_vars", None)
    return config


def _settings(args: dict[str, Any], overrides: Overrides) -> Settings:
    above = {
        ("model", "source"): overrides.model,
        ("model", "precision"): overrides.precision,
        ("redis", "url"): overrides.redis_url,
    }
    settings = Settings.load(args)
    tree = {name: getattr(settings, name).model_dump() for name in Settings.model_fields}
    for (section, key), value in above.items():
        if value is not None:
            tree[section][key] = value
    for model in (tree["model"], *tree["models"]["also"].values()):
        model["source"] = _absolute(model["source"])
    settings = _without_environment(tree)
    served_models(settings)  # refuses what doesn't go together
    return settings


def _absolute(source: str) -> str:
    """Return a model's source as replicas find it, which run in another folder."""
    if not (os.sep in source or source.startswith(("~", "."))):
        return source
    local = Path(source).expanduser().absolute()
    return str(local) if local.exists() else source


def _without_environment(tree: dict[str, Any]) -> Settings:
    """Build settings of exactly these values: the environment has had its say already."""
    try:
        sections = {name: _section(name).model_validate(values) for name, values in tree.items()}
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        msg = f"{'.'.join(map(str, found['loc']))}: {as_sentence(found['msg'])}"
        raise ConfigError(msg) from None
    return Settings.model_construct(**sections)  # type: ignore[arg-type]


def _section(name: str) -> type[BaseModel]:
    section = Settings.model_fields[name].annotation
    assert isinstance(section, type)  # noqa: S101 - every field of Settings is a section
    assert issubclass(section, BaseModel)  # noqa: S101
    return section


def _refuse_open_door(source: YamlFile, host: str, settings: Settings, *, by_option: bool) -> None:
    if _is_loopback(host):
        return
    keys = KeyRing.open(settings.auth, parley_home())
    if keys.demands_key and keys.list():
        return
    reason = (
        "auth.required is false"
        if settings.auth.required is False
        else f"{keys.file} holds no API key; `parley key create NAME` makes one"
    )
    msg = (
        f"{host} can be reached by other machines, and {reason}. "
        "Keep to 127.0.0.1, or have every request carry a key."
    )
    if by_option:
        # The file's own line is in order, and mending it wouldn't help.
        raise ConfigError(f"--host {msg}")
    raise source.refusal([Fault(("http_options", "host"), msg)])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _deployment(application: dict[str, Any], name: str) -> dict[str, Any]:
    deployments = application.setdefault("deployments", [])
    for deployment in deployments:
        if deployment["name"] == name:
            return cast("dict[str, Any]", deployment)
    deployments.append({"name": name})
    return cast("dict[str, Any]", deployments[-1])


def _at_least(application: dict[str, Any], name: str, replicas: int) -> None:
    deployment = _deployment(application, name)
    scaling = deployment.get("autoscaling_config")
    if scaling is None:
        deployment["num_replicas"] = replicas
        return
    scaling["min_replicas"] = replicas
    scaling["max_replicas"] = max(replicas, scaling.get("max_replicas", 1))
    if (initial := scaling.get("initial_replicas")) is not None:
        scaling["initial_replicas"] = max(replicas, initial)


def _replicas(deployment: dict[str, Any]) -> tuple[int, int]:
    """Return how many replicas a deployment has at least and at most."""
    scaling = deployment.get("autoscaling_config")
    if scaling is None:
        count = deployment.get("num_replicas") or 1
        return (count, count) if isinstance(count, int) else (1, 100)
    return scaling.get("min_replicas", 1), scaling.get("max_replicas", 1)


def _share_cores(application: dict[str, Any], models: tuple[Served, ...]) -> None:
    """Give each generator replica on a CPU its share of the cores where the file leaves that open."""
    generator = application["args"]["generator"]
    if generator["threads"] == 0:
        least = 0
        for model in models:
            for pool in model.pools:
                deployment = _deployment(application, pool.deployment)
                if not (deployment.get("ray_actor_options") or {}).get("num_gpus"):
                    least += _replicas(deployment)[0]
        generator["threads"] = max(1, _cores() // max(1, least))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _most(applications: list[dict[str, Any]], resource: str, unsaid: float) -> float:
    """Return what all replicas take at most of one of Ray's resources.

    Ray's CPUs are a count, not cores: on one machine every replica shares them anyway.

    Args:
        applications: what Serve is to deploy.
        resource: a key of `ray_actor_options`.
        unsaid: what Ray takes where nothing is said.
    """
    wanted = 0.0
    for application in applications:
        for deployment in application.get("deployments", []):
            _, most = _replicas(deployment)
            options = deployment.get("ray_actor_options") or {}
            share = options.get(resource)
            wanted += most * (unsaid if share is None else share)
    return wanted
