"""Where replicas listen, and keeping them off interfaces that nobody asked for."""

from __future__ import annotations

import ipaddress
from typing import Any

import ray
from ray.serve._private import replica as serve_replica
from ray.serve.context import _get_global_client

__all__ = ["listen_on_node_address", "open_to_other_machines"]


def open_to_other_machines() -> bool:
    """Whether Serve takes HTTP on any other address than loopback; asked inside of a replica."""
    controller = _get_global_client()._controller  # noqa: SLF001 - Serve shows it nowhere else
    host = ray.get(controller.get_http_config.remote()).host
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return bool(host != "localhost")


def listen_on_node_address() -> None:
    """Bind this replica's internal gRPC server to the node's address instead of to all.

    Serve binds it to `[::]` and unpickles what arrives there. On a laptop the node's address is
    loopback; in a cluster it is the one address that the other replicas use. Call it from a
    replica's constructor: Serve starts the server after that.
    """
    address = ray.util.get_node_ip_address()
    host = f"[{address}]" if ":" in address else address
    bind = serve_replica.add_port_to_grpc_server

    def bind_to_node(server: Any, wanted: str) -> int:
        return int(bind(server, wanted.replace("[::]", host)))

    serve_replica.add_port_to_grpc_server = bind_to_node
