"""Strict schemas: Kubernetes' own from the package kubernetes-validate, custom resources' from beside."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

import jsonschema
from custom_resources import CUSTOM_RESOURCES
from jsonschema.protocols import Validator
from referencing import Registry, Resource

__all__ = ["KUBERNETES", "schema_faults"]

KUBERNETES = "1.37.0"
"""The version of Kubernetes whose API the manifests are checked against."""


@cache
def _read(name: str) -> Any:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    return json.loads((folder / f"v{KUBERNETES}-local-strict" / name).read_text())


@cache
def _definitions() -> Registry[Any]:
    return Resource.from_contents(_read("_definitions.json")) @ Registry()


@cache
def _validator(api_version: str, kind: str) -> Validator | None:
    if custom := CUSTOM_RESOURCES.get((api_version, kind)):
        # References are resolved beside Kubernetes' definitions.
        schema = {"$id": f"https://kubernetes.io/api/{kind}", **custom}
    else:
        short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
        try:
            schema = _read(f"{kind.lower()}-{short}.json")
        except FileNotFoundError:
            return None
    return jsonschema.Draft202012Validator(schema, registry=_definitions())


def schema_faults(manifest: dict[str, Any]) -> list[str]:
    """Return what a strict API server would refuse in one manifest."""
    name = f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"
    validator = _validator(str(manifest.get("apiVersion")), str(manifest.get("kind")))
    if validator is None:
        return [f"{name}: there is no such kind in {manifest.get('apiVersion')}"]
    return [
        f"{name}: {error.json_path}: {error.message[:200]}"
        for error in validator.iter_errors(manifest)
    ]
