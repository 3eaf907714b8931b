"""Operating Parley in Kubernetes: what `parley ops` does, with the official client."""

from __future__ import annotations

__all__: list[str] = []
