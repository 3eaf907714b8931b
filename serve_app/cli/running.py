"""The server that commands talk to where none is named."""

from __future__ import annotations

from serve_app.settings import parley_home

__all__ = ["running_url"]

_DEFAULT_URL = "http://127.0.0.1:8000"


def running_url() -> str:
    """Return the address of what `parley up` has started, else where it would be by default."""
    from serve_app.cluster.run_folder import RunFolder

    state = RunFolder(parley_home()).state()
    return state.url if state else _DEFAULT_URL
