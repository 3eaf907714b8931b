"""The deploy file: read, checked strictly, and changed in memory by what the command line says."""

from __future__ import annotations

import copy
import inspect
import ipaddress
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from serve_app.errors import ConfigError
from serve_app.settings import Settings, deploy_folder, parley_home
from serve_app.state.keys import KeyRing
from serve_app.yaml_lines import Fault, KeyPath, YamlFile, as_sentence, read_yaml, unknown_key

__all__ = [
    "APPLICATION",
    "Deployment",
    "Overrides",
    "default_deploy_file",
    "load_deployment",
    "read_deploy_file",
    "without_inherited",
]

APPLICATION = "parley"
_IMPORT_PATH = "serve_app.app:build"
_DEPLOYMENTS = ("Ingress", "Dialogue", "Tokenizer", "Generator")
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
    """

    file: Path
    config: dict[str, Any]
    settings: Settings
    host: str
    port: int
    cpus: int

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
    if faults := [*source.repeated, *_faults(source.data)]:
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
    position = _position(config)
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
    _share_cores(application)
    return Deployment(
        source.file, config, settings, host, port, math.ceil(_cpus(config["applications"]))
    )


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


def _faults(data: dict[str, Any]) -> Iterator[Fault]:
    # Ray takes a second to import, and most commands need none of it.
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    unknown = list(_unknown_keys(ServeDeploySchema, data, ()))
    yield from unknown
    try:
        ServeDeploySchema.model_validate(copy.deepcopy(data))
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            yield Fault(tuple(found["loc"]), as_sentence(found["msg"]))
        return  # what follows relies on the shape
    position = _position(data)
    if position is None:
        yield Fault(("applications",), f"no application is named `{APPLICATION}`.")
        return
    application = data["applications"][position]
    path: KeyPath = ("applications", position)
    yield from _args_faults(application.get("args") or {}, (*path, "args"))
    for place, deployment in enumerate(application.get("deployments", [])):
        here = (*path, "deployments", place)
        if application["import_path"] == _IMPORT_PATH and deployment["name"] not in _DEPLOYMENTS:
            known = ", ".join(_DEPLOYMENTS)
            yield Fault((*here, "name"), f"no deployment of that name; there are {known}.")
        # Serve's schema takes any mapping here and fails only while deploying.
        if scaling := deployment.get("autoscaling_config"):
            try:
                AutoscalingConfig.model_validate(scaling)
            except ValidationError as error:
                for found in error.errors(include_url=False, include_input=False):
                    yield Fault(
                        (*here, "autoscaling_config", *found["loc"]), as_sentence(found["msg"])
                    )
            else:
                yield from _policy_faults(scaling, (*here, "autoscaling_config", "policy"))


def _policy_faults(scaling: dict[str, Any], path: KeyPath) -> Iterator[Fault]:
    """Check what our own policy is given: Serve would find out in its controller, while deploying."""
    from serve_app.routing.autoscaling import ScaleByWork

    policy = scaling.get("policy") or {}
    if policy.get("policy_function") != f"{ScaleByWork.__module__}:{ScaleByWork.__name__}":
        return
    known = list(inspect.signature(ScaleByWork).parameters)
    for name, value in (policy.get("policy_kwargs") or {}).items():
        here = (*path, "policy_kwargs", name)
        if name not in known:
            yield Fault(here, unknown_key(str(name), known))
        elif not isinstance(value, int | float):
            yield Fault(here, "must be a number.")
        else:
            try:
                ScaleByWork(**{name: value})
            except ConfigError as error:
                yield Fault(here, error.message)


def _args_faults(args: dict[str, Any], path: KeyPath) -> Iterator[Fault]:
    """Check each section by itself, without the environment, so that a fault has a line."""
    for name, values in args.items():
        field = Settings.model_fields.get(name)
        if field is None:
            yield Fault((*path, name), unknown_key(name, Settings.model_fields))
            continue
        section = field.annotation
        if not isinstance(section, type) or not issubclass(section, BaseModel):
            continue
        try:
            section.model_validate(values)
        except ValidationError as error:
            for found in error.errors(include_url=False, include_input=False):
                if found["type"] == "extra_forbidden":
                    message = unknown_key(str(found["loc"][-1]), section.model_fields)
                else:
                    message = as_sentence(found["msg"])
                yield Fault((*path, name, *found["loc"]), message)
    if "url" in (args.get("redis") or {}):
        yield Fault(
            (*path, "redis", "url"),
            "a password doesn't belong in this file; put the URL into PARLEY_REDIS_URL.",
        )
    if "keys" in (args.get("encryption") or {}):
        yield Fault(
            (*path, "encryption", "keys"),
            "a secret doesn't belong in this file; put the keys into PARLEY_ENCRYPTION_KEYS.",
        )


def _unknown_keys(model: type[BaseModel], value: object, path: KeyPath) -> Iterator[Fault]:
    """Find keys that Serve's schemas would let pass or take for something else."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        field = model.model_fields.get(key)
        if field is None:
            if model.model_config.get("extra") != "forbid":
                yield Fault((*path, key), unknown_key(str(key), model.model_fields))
            continue
        for nested in _models_in(field.annotation):
            items = enumerate(inner) if isinstance(inner, list) else [(None, inner)]
            for position, item in items:
                here = (*path, key) if position is None else (*path, key, position)
                yield from _unknown_keys(nested, item, here)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _position(data: dict[str, Any]) -> int | None:
    for position, application in enumerate(data["applications"]):
        if application.get("name") == APPLICATION:
            return position
    return None


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
    source = tree["model"]["source"]
    if os.sep in source or source.startswith(("~", ".")):
        # Replicas run in another folder.
        local = Path(source).expanduser().absolute()
        tree["model"]["source"] = str(local) if local.exists() else source
    return _without_environment(tree)


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


def _share_cores(application: dict[str, Any]) -> None:
    """Give each generator replica its share of the cores where the file leaves that open."""
    generator = application["args"]["generator"]
    if generator["threads"] == 0:
        least, _ = _replicas(_deployment(application, "Generator"))
        generator["threads"] = max(1, _cores() // max(1, least))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpus(applications: list[dict[str, Any]]) -> float:
    # Ray's CPUs are a count, not cores: on one machine every replica shares them anyway.
    wanted = 0.0
    for application in applications:
        for deployment in application.get("deployments", []):
            _, most = _replicas(deployment)
            options = deployment.get("ray_actor_options") or {}
            share = options.get("num_cpus")
            wanted += most * (1.0 if share is None else share)
    return max(float(_cores()), wanted)
