"""What a deploy file names of Python's: the application's builder and policies of autoscaling."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from serve_app.yaml_lines import Fault, KeyPath

__all__ = ["IMPORT_PATH", "builder_fault", "policy_faults"]

IMPORT_PATH = "serve_app.app:build"
"""What builds Parley's application."""

_PACKAGE = "serve_app"


def policy_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """Find policies that can't be imported: Serve does so while it reads the file."""
    for path, policy in _policies(data):
        named = policy.get("policy_function")
        if isinstance(named, str) and not _is_there(named):
            yield Fault((*path, "policy_function"), f"there is no {named}; write MODULE:NAME.")


def _policies(data: dict[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield each policy of a file of which nobody knows yet whether it has the right shape."""
    for path, application in _items(data, "applications"):
        for place, deployment in _items(application, "deployments"):
            scaling = deployment.get("autoscaling_config")
            policy = scaling.get("policy") if isinstance(scaling, dict) else None
            if isinstance(policy, dict):
                yield (*path, *place, "autoscaling_config", "policy"), policy


def _items(mapping: dict[str, Any], key: str) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    listed = mapping.get(key)
    for position, item in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(item, dict):
            yield (key, position), item


def builder_fault(import_path: str, path: KeyPath) -> Iterator[Fault]:
    """Find a misspelt builder; one of somebody else's, which calls ours, is taken on trust."""
    if import_path.startswith(f"{_PACKAGE}.") and import_path != IMPORT_PATH:
        yield Fault((*path, "import_path"), f"nothing to serve is there; it is {IMPORT_PATH}.")


def _is_there(named: str) -> bool:
    module, _, name = named.rpartition(":" if ":" in named else ".")
    try:
        return hasattr(importlib.import_module(module), name)
    except (ImportError, ValueError):  # such as an empty name
        return False
