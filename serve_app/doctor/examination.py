"""Everything at once: whether this machine can serve what the settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serve_app.doctor.finding import Finding
from serve_app.doctor.gpu import gpu_report
from serve_app.doctor.host import disk, haproxy, processor, redis_server
from serve_app.doctor.model import Plan, engine, planned, prepared_model, prepared_models
from serve_app.errors import ModelError
from serve_app.gpu.driver import Driver, read_driver
from serve_app.gpu.tensorrt_package import tensorrt_version
from serve_app.routing.pools import served_models
from serve_app.settings import Settings

__all__ = ["Examination", "examine"]


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        plan: what would be served, or None where the settings can't be met on any terms.
        findings: line by line.
        further: what further models and pools would be.
    """

    plan: Plan | None
    findings: tuple[Finding, ...]
    further: tuple[Plan, ...] = ()

    @property
    def can_serve(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.state != "missing" for finding in self.findings)


def examine(
    home: Path,
    settings: Settings,
    *,
    ask_driver: Callable[[], Driver] = read_driver,
    ask_tensorrt: Callable[[], str] = tensorrt_version,
) -> Examination:
    """Look at everything that serving takes.

    Args:
        home: PARLEY_HOME.
        settings: what is to be served, and with what.
        ask_driver: see `serve_app.gpu.driver`.
        ask_tensorrt: see `serve_app.gpu.tensorrt_package`.
    """
    findings = [processor(), disk(home), redis_server(settings.redis), haproxy()]
    pools = [pool for model in served_models(settings) for pool in model.pools]
    try:
        plans = [planned(pool) for pool in pools]
    except ModelError as error:
        findings.append(Finding("form", "missing", "none", error.message))
        return Examination(None, tuple(findings))
    gpu = gpu_report(
        wanted=any(plan.on_gpu for plan in plans),
        read_driver=ask_driver,
        tensorrt_version=ask_tensorrt,
    )
    plan, *further = plans
    findings += [*gpu.findings, prepared_models(home, plan)]
    findings += [prepared_model(home, other) for other in further]
    findings += [
        engine(home, each, gpu, pool.settings.model.engines)
        for each, pool in zip(plans, pools, strict=True)
        if each.on_gpu
    ]
    return Examination(plan, tuple(findings), tuple(further))
