"""The service in one process, without Ray, its replicas mortal.

What is real: the ingress as an ASGI application, the clients with which it calls the other deployments,
the deployments' own methods, the engine, and Redis. What stands for something else: calls between replicas
(`calls`, for Serve's handles), connections of HTTP clients (`exchange`, for sockets), and the model
(`SimulatedBackend`). A replica dies as a process does: whatever it is doing stops where it stands, nothing
that it would still do reaches anybody, and its callers get Ray's error (`life`).
"""

from __future__ import annotations

__all__: list[str] = []
