"""`python -m serve_app.cli` is `parley`."""

from __future__ import annotations

from serve_app.cli import main

__all__: list[str] = []

main()
