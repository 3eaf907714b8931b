"""Where a user's own files are, and the ones that ship."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["deploy_folder", "drain_flag", "parley_home"]


def parley_home() -> Path:
    """Return the folder that holds models, state and logs: PARLEY_HOME, else `~/.parley`."""
    return Path(os.environ.get("PARLEY_HOME") or "~/.parley").expanduser().absolute()


def deploy_folder() -> Path:
    """Return the folder `deploy` that ships: inside an installed package, or beside it in the repository."""
    package = Path(__file__).parent.parent
    inside = package / "deploy"
    return inside if inside.exists() else package.parent / "deploy"


def drain_flag(home: Path) -> Path:
    """Return the file whose existence tells the ingress of a home's run to take no more work.

    Args:
        home: PARLEY_HOME.
    """
    return home / "run" / "draining"
