"""Serve's REST interface on Ray's dashboard: deploy, look, delete."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import httpx

from serve_app.errors import ConfigError

__all__ = ["ServeApi"]

_PATH = "/api/serve/applications/"
_DETAILS_TIMEOUT_S = 5.0  # Serve has them at hand
# The first request starts Serve's controller and proxy and is answered when they run.
_TIMEOUT_S = 120.0


class ServeApi:
    """A client of the interface.

    Args:
        dashboard: URL of Ray's dashboard.
        token: Ray's token.
    """

    def __init__(self, dashboard: str, token: str) -> None:
        self._client = httpx.Client(
            base_url=dashboard,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT_S,
            trust_env=False,  # a proxy for the web has no business on loopback
        )

    def __enter__(self) -> ServeApi:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def deploy(self, config: dict[str, Any]) -> None:
        """Ask for exactly these applications.

        Raises:
            ConfigError: Serve refused them or can't be reached.
        """
        self._request("PUT", json=config)

    def details(self) -> dict[str, Any]:
        """Return what runs: applications, deployments, replicas, proxies.

        Raises:
            ConfigError: Serve can't be reached.
        """
        return dict(self._request("GET", timeout=_DETAILS_TIMEOUT_S).json())

    def withdraw(self) -> None:
        """Ask for all applications to end; running requests get their time to finish.

        Asking for none is gentler than asking Serve to delete what it has: that ends the proxy at
        once, and with it the connections that go through it.

        Raises:
            ConfigError: Serve can't be reached.
        """
        serving = self.details()
        listening = {key: serving["http_options"][key] for key in ("host", "port")}
        self.deploy(
            {
                "proxy_location": serving["proxy_location"],
                "http_options": listening,
                "applications": [],
            }
        )

    def _request(self, method: str, **content: Any) -> httpx.Response:
        try:
            response = self._client.request(method, _PATH, **content)
        except httpx.HTTPError as error:
            msg = f"Serve's REST interface at {self._client.base_url} does not answer: {error!r}."
            raise ConfigError(msg) from None
        if response.is_error:
            last = response.text.strip().splitlines()[-1:] or [response.reason_phrase]
            msg = f"Serve refused the request ({response.status_code}): {last[0]}"
            raise ConfigError(msg)
        return response
