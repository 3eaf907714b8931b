"""A container's health check: exits with 0 if requests can be served, else with 1 and the reason.

Usage: healthcheck.py [URL]. Only the standard library: this runs every few seconds.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

READY = "http://127.0.0.1:8000/ready"
TIMEOUT_S = 4.0


def fault(url: str) -> str | None:
    """Return why nothing can be served at `url`, or None if it can."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):  # noqa: S310 - the URL is the image's own
            return None
    except urllib.error.HTTPError as error:
        with error:
            return f"{url} answers {error.code}: {error.read(500).decode(errors='replace')}"
    except OSError as error:
        return f"{url} does not answer: {error}"


if __name__ == "__main__":
    sys.exit(fault(sys.argv[1] if len(sys.argv) > 1 else READY))
