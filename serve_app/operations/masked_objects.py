"""Kubernetes' objects without secrets and personal data."""

from __future__ import annotations

from typing import Any

from serve_app.operations.kinds import Object
from serve_app.telemetry.masking import MASK, Masks, is_secret_key, is_secret_variable

__all__ = ["ObjectMasks"]


class ObjectMasks(Masks):
    """Masks objects, and texts as `Masks` does."""

    def object(self, value: Object) -> Object:
        """Return an object of Kubernetes' without secrets and personal data.

        Of a Secret only the names of its keys are left, of a variable named like a secret only its name.
        """
        masked: Object = self._tree(value)
        if value.get("kind") == "Secret":
            for part in ("data", "stringData"):
                if part in value:
                    masked[part] = dict.fromkeys(value[part], MASK)
        metadata = masked.get("metadata", {})
        metadata.pop("managedFields", None)
        # kubectl's copy of what was applied, values and all.
        metadata.get("annotations", {}).pop(
            "kubectl.kubernetes.io/last-applied-configuration", None
        )
        return masked

    def _tree(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._tree(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("value"), str) and is_secret_variable(str(value.get("name", ""))):
            value = {**value, "value": MASK}
        return {
            key: MASK if isinstance(inner, str) and is_secret_key(key) else self._tree(inner)
            for key, inner in value.items()
        }
