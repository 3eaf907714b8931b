"""What every replica reports of itself, and where its node's metrics are had."""

from __future__ import annotations

import ray

from serve_app.errors import ParleyError
from serve_app.settings import Settings, parley_home
from serve_app.state.keys import KeyRing
from serve_app.telemetry.node_endpoint import NodeEndpoint
from serve_app.telemetry.process_metrics import metrics_folder
from serve_app.telemetry.process_report import ProcessReport

__all__ = ["may_see_metrics", "report_replica"]


def report_replica(deployment: str, settings: Settings) -> None:
    """Begin to report this process.

    Args:
        deployment: whose replica it is.
        settings: say where the node's metrics are had, and whether that takes a key.
    """
    ProcessReport(deployment).start()
    if settings.metrics.port:
        keys = KeyRing.open(settings.auth, parley_home())
        NodeEndpoint(
            ray.util.get_node_ip_address(),
            settings.metrics.port,
            allowed=lambda authorization: may_see_metrics(keys, authorization),
            folder=metrics_folder(),
        ).start()


def may_see_metrics(keys: KeyRing, authorization: str) -> bool:
    """Whether a request may see metrics: whoever has any key, or everybody while there are none.

    Args:
        keys: the keys.
        authorization: the request's header, "" where it has none.
    """
    scheme, _, key = authorization.partition(" ")
    try:
        if not keys.demands_key:
            return True
        if scheme.lower() == "bearer":
            keys.authenticate(key.strip())
            return True
    except ParleyError:
        return False
    return False
