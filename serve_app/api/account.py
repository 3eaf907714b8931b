"""The account of a request as clients read it: an object, and the header `Server-Timing`."""

from __future__ import annotations

from typing import Any

from serve_app.telemetry.account import Account, Stage

__all__ = ["SERVER_TIMING", "account_object", "read_account", "server_timing"]

SERVER_TIMING = "server-timing"
"""Source: W3C, Server Timing."""


def account_object(account: Account) -> dict[str, Any]:
    """Return the object; all its times are milliseconds."""
    return {
        "object": "request.account",
        "id": account.request,
        "http_request_id": account.http_request or None,
        "api": account.api,
        "created_at": round(account.created_at, 3),
        "total_ms": _ms(account.total_s),
        "first_token_ms": None if account.first_token_s is None else _ms(account.first_token_s),
        "stages": [
            {
                "stage": stage.name,
                "transfer_ms": _ms(stage.transfer_s),
                "compute_ms": _ms(stage.compute_s),
            }
            for stage in account.stages
        ],
        "unaccounted_ms": _ms(account.unaccounted_s),
        "prompt_tokens": account.prompt_tokens,
        "cached_tokens": account.cached_tokens,
        "completion_tokens": account.completion_tokens,
        "choices": account.choices,
        "moves": account.moves,
        "error": account.error,
    }


def read_account(found: dict[str, Any]) -> Account:
    """Return the account that an object tells of.

    Raises:
        LookupError, TypeError, ValueError: it is no such object.
    """
    first_ms = found["first_token_ms"]
    return Account(
        request=str(found["id"]),
        http_request=str(found["http_request_id"] or ""),
        api=str(found["api"]),
        created_at=float(found["created_at"]),
        total_s=float(found["total_ms"]) / 1000,
        stages=tuple(
            Stage(one["stage"], float(one["transfer_ms"]) / 1000, float(one["compute_ms"]) / 1000)
            for one in found["stages"]
        ),
        first_token_s=None if first_ms is None else float(first_ms) / 1000,
        prompt_tokens=int(found["prompt_tokens"]),
        cached_tokens=int(found["cached_tokens"]),
        completion_tokens=int(found["completion_tokens"]),
        choices=int(found["choices"]),
        moves=int(found["moves"]),
        error=found["error"],
    )


def server_timing(account: Account) -> str:
    """Return the header's value: each stage's whole time as `dur`, then its two parts; the total last."""
    stages = [
        f"{stage.name};dur={_ms(stage.total_s)};transfer={_ms(stage.transfer_s)}"
        f";compute={_ms(stage.compute_s)}"
        for stage in account.stages
    ]
    unaccounted = f"unaccounted;dur={_ms(max(account.unaccounted_s, 0.0))}"
    return ", ".join([*stages, unaccounted, f"total;dur={_ms(account.total_s)}"])


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
