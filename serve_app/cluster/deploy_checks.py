"""What is wrong with a deploy file, found in the file alone: every fault with its place."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from serve_app.cluster.deploy_imports import IMPORT_PATH, builder_fault, policy_faults
from serve_app.errors import ConfigError
from serve_app.models.precision.named import forms_with
from serve_app.routing.pools import Pool, Served, served_models
from serve_app.settings import Settings
from serve_app.yaml_lines import Fault, KeyPath, as_sentence, unknown_key

__all__ = ["APPLICATION", "deploy_faults", "position_of"]

APPLICATION = "parley"
_PORTS = range(1, 65536)


def deploy_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """Find what is wrong in the content of a deploy file."""
    # Ray takes a second to import, and most commands need none of it.
    from ray.serve.schema import ServeDeploySchema

    unknown = list(_unknown_keys(ServeDeploySchema, data, ()))
    yield from unknown
    if not_there := list(policy_faults(data)):
        yield from not_there
        return
    try:
        ServeDeploySchema.model_validate(copy.deepcopy(data))
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            yield Fault(tuple(found["loc"]), as_sentence(found["msg"]))
        return  # what follows relies on the shape
    if (port := (data.get("http_options") or {}).get("port", _PORTS[0])) not in _PORTS:
        yield Fault(
            ("http_options", "port"),
            f"{port} is no port; there are {_PORTS[0]} to {_PORTS[-1]}.",
        )
    position = position_of(data)
    if position is None:
        yield Fault(("applications",), f"no application is named `{APPLICATION}`.")
        return
    application = data["applications"][position]
    path: KeyPath = ("applications", position)
    yield from builder_fault(application["import_path"], path)
    args = application.get("args") or {}
    wrong = list(_args_faults(args, (*path, "args")))
    yield from wrong
    models: tuple[Served, ...] = ()
    if not wrong:
        try:
            models = _models(args)
        except ConfigError as error:
            keys = error.param.split(".") if error.param else []
            yield Fault((*path, "args", *keys), error.message.removeprefix(f"{error.param}: "))
    seen: set[str] = set()
    for place, deployment in enumerate(application.get("deployments", [])):
        here = (*path, "deployments", place)
        if deployment["name"] in seen:
            yield Fault((*here, "name"), "stands here twice; write it once.")
        seen.add(deployment["name"])
        yield from _runtime_faults(deployment, here)
        yield from _scaling_faults(deployment, here)
        if models and application["import_path"] == IMPORT_PATH:
            yield from _pool_faults(deployment, here, models)
    if models and application["import_path"] == IMPORT_PATH:
        yield from _gpu_faults(application.get("deployments", []), path, models)


def _pool_faults(
    deployment: dict[str, Any], path: KeyPath, models: tuple[Served, ...]
) -> Iterator[Fault]:
    """Find a name that no deployment has, a pool that nobody would ever wake, and one that is cut short."""
    name = deployment["name"]
    pools = [{pool.deployment for pool in model.pools} for model in models]
    known = {"Ingress", "Dialogue", *(model.tokenizer for model in models)}.union(*pools)
    if name not in known:
        there_are = ", ".join(sorted(known))
        yield Fault((*path, "name"), f"no deployment of that name; there are {there_are}.")
    beside_others = any(name in together and len(together) > 1 for together in pools)
    scaling = deployment.get("autoscaling_config") or {}
    if beside_others and scaling.get("min_replicas") == 0:
        yield Fault(
            (*path, "autoscaling_config", "min_replicas"),
            "a pool beside others keeps a replica: those others take what would wake it. Set it to 1.",
        )
    for pool in (pool for model in models for pool in model.pools if pool.deployment == name):
        drains, ends = (
            pool.settings.generator.drain_timeout_s,
            deployment.get("graceful_shutdown_timeout_s"),
        )
        if ends is not None and ends <= drains:
            yield Fault(
                (*path, "graceful_shutdown_timeout_s"),
                f"{ends:g} s are too few: replies may end, or be handed to another replica, for "
                f"{drains:g} s (generator.drain_timeout_s).",
            )


def _gpu_faults(
    deployments: list[dict[str, Any]], path: KeyPath, models: tuple[Served, ...]
) -> Iterator[Fault]:
    """Find generators that want a GPU and are given none or several, or have one that they don't want.

    Args:
        deployments: as in the file.
        path: the application's.
        models: what is served.
    """
    places = {deployment["name"]: place for place, deployment in enumerate(deployments)}
    for pool in (pool for model in models for pool in model.pools):
        place = places.get(pool.deployment)
        options = {} if place is None else deployments[place].get("ray_actor_options") or {}
        given = options.get("num_gpus") or 0
        here: KeyPath = (*path, "args", *pool.place)
        if place is not None:
            here = (*path, "deployments", place, "name")
        if "num_gpus" in options:
            here = (*here[:-1], "ray_actor_options", "num_gpus")
        if not _on_gpu(pool):
            if given:
                yield Fault(
                    here,
                    "a CPU computes this model's form, and the GPU would stand idle; take num_gpus away, "
                    "or set the form to standard.",
                )
        elif not given:
            yield Fault(
                here,
                f"a GPU computes the standard form, and Ray shows {pool.deployment} none without num_gpus "
                "in its ray_actor_options: 1 for a whole one, 0.5 for a half.",
            )
        elif given > 1:
            yield Fault(
                here, "a replica computes on one GPU; take 1, and a replica for each further GPU."
            )


def _on_gpu(pool: Pool) -> bool:
    """Tell whether a GPU computes a pool, wherever the file is checked."""
    model = pool.settings.model
    standard = model.form == "standard" or (
        model.form is None and forms_with(model.precision) == ("standard",)
    )
    return standard and pool.settings.generator.backend != "simulated"


def _models(args: dict[str, Any]) -> tuple[Served, ...]:
    """Return what is served by the file alone.

    Raises:
        ConfigError: with the path of what doesn't go together.
    """
    sections = {
        name: type(field.get_default()).model_validate(args.get(name) or {})
        for name, field in Settings.model_fields.items()
    }
    return served_models(Settings.model_construct(**sections))


def _runtime_faults(deployment: dict[str, Any], path: KeyPath) -> Iterator[Fault]:
    """Find keys of a runtime environment that Ray would only warn of, in the log of a worker."""
    from ray.runtime_env import RuntimeEnv

    known = sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_"))
    for key in (deployment.get("ray_actor_options") or {}).get("runtime_env") or {}:
        if key not in known:
            here = (*path, "ray_actor_options", "runtime_env", key)
            yield Fault(here, unknown_key(str(key), known))


def _scaling_faults(deployment: dict[str, Any], path: KeyPath) -> Iterator[Fault]:
    from ray.serve.config import AutoscalingConfig

    # Serve's schema takes any mapping here and fails only while deploying.
    if not (scaling := deployment.get("autoscaling_config")):
        return
    here = (*path, "autoscaling_config")
    try:
        checked = AutoscalingConfig.model_validate(scaling)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            yield Fault((*here, *found["loc"]), as_sentence(found["msg"]))
        return
    most, wanted = deployment.get("max_ongoing_requests"), checked.target_ongoing_requests
    if "target_ongoing_requests" in scaling and most is not None and wanted > most:
        yield Fault(
            (*here, "target_ongoing_requests"),
            f"a replica takes {most} requests at once (max_ongoing_requests): it can't come to hold "
            f"{wanted:g}, and none would ever be added.",
        )
    yield from _policy_faults(scaling, (*here, "policy"))


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
                place = tuple(part for part in found["loc"] if part != "[key]")
                if found["type"] == "extra_forbidden":
                    known = _section_at(section, place[:-1]).model_fields
                    message = unknown_key(str(place[-1]), known)
                elif "[key]" in found["loc"]:
                    message = "a key is of small letters, digits and dashes, 32 at most."
                else:
                    message = as_sentence(found["msg"])
                yield Fault((*path, name, *place), message)
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


def _section_at(section: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the section that a path into another one leads to; keys of mappings lead to their values."""
    for part in place:
        field = section.model_fields.get(str(part))
        if field is not None:
            section = next(_models_in(field.annotation), section)
    return section


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


def position_of(data: dict[str, Any]) -> int | None:
    """Return which of the applications is Parley's, if any is."""
    for position, application in enumerate(data["applications"]):
        if application.get("name") == APPLICATION:
            return position
    return None
