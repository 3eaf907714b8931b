"""What the accounts of requests come to in metrics."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from serve_app.telemetry import metrics
from serve_app.telemetry.account import Account, StageName

__all__ = ["observe_account"]


def observe_account(account: Account, model: str) -> None:
    """Count the account of a request that is over; a part that took no time is not counted.

    Args:
        account: the request's.
        model: name of the model that is served.
    """
    for stage in account.stages:
        if stage.transfer_s > 0:
            _part_of(stage.name, "transfer").observe(stage.transfer_s)
        if stage.compute_s > 0:
            _part_of(stage.name, "compute").observe(stage.compute_s)
        if stage.name == "prefill":
            metrics.PREFILL_SECONDS.labels(model).observe(stage.compute_s)
        elif stage.name == "decode":
            metrics.DECODE_SECONDS.labels(model).observe(stage.compute_s)


@cache
def _part_of(stage: StageName, part: Literal["transfer", "compute"]) -> Any:
    """Return one series: to find it by its labels costs as much as to count."""
    return metrics.STAGE_SECONDS.labels(stage, part)
