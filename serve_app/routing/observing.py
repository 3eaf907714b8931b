"""What every replica does first: log, trace and report as the settings say."""

from __future__ import annotations

import os

from ray import serve
from ray.serve.exceptions import RayServeException

from serve_app.routing.reporting import report_replica
from serve_app.settings import Settings
from serve_app.telemetry import logs, tracing

__all__ = ["observe_replica"]


def observe_replica(deployment: str, settings: Settings) -> None:
    """Have this replica log, trace and report as the settings say; call it from its constructor.

    Args:
        deployment: such as Ingress.
        settings: the whole tree.

    Raises:
        ConfigError: it is to trace, and what it takes is not installed.
    """
    try:
        replica = serve.get_replica_context().replica_id.unique_id
    except RayServeException:  # constructed by itself, without Serve
        replica = f"process-{os.getpid()}"
    logs.use(settings.telemetry, deployment=deployment, replica=replica)
    tracing.start(settings.telemetry, deployment=deployment, replica=replica)
    report_replica(deployment, settings)
