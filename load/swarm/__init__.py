"""Locust's users, shapes, statistics and limits; `load/locustfile.py` hands them to Locust."""

from __future__ import annotations

__all__: list[str] = []
