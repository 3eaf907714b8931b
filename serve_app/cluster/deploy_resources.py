"""What a deploy file names and this machine lacks: models and engines, with the lines that name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from serve_app.cluster.deploy_checks import position_of
from serve_app.cluster.deploy_file import Deployment, read_deploy_file
from serve_app.doctor.gpu import GpuReport, gpu_report
from serve_app.doctor.model import engine, planned
from serve_app.errors import ModelError
from serve_app.gpu.driver import Driver, read_driver
from serve_app.gpu.tensorrt_package import tensorrt_version
from serve_app.models.sources import require_source
from serve_app.routing.pools import Pool
from serve_app.settings import parley_home
from serve_app.yaml_lines import Fault, KeyPath

__all__ = ["require_resources"]


def require_resources(
    deployment: Deployment,
    *,
    ask_driver: Callable[[], Driver] = read_driver,
    ask_tensorrt: Callable[[], str] = tensorrt_version,
) -> list[str]:
    """Refuse a deploy file whose models or engines aren't here.

    An engine is looked for where there is a GPU that it would run on; elsewhere only the folder that
    machines share must be there.

    Args:
        deployment: the file, with what goes above it.
        ask_driver: see `serve_app.gpu.driver`.
        ask_tensorrt: see `serve_app.gpu.tensorrt_package`.

    Returns:
        Sentences about what could not be looked at.

    Raises:
        ConfigError: naming file, line and key of everything that is missing.
    """
    source = read_deploy_file(deployment.file)
    args: KeyPath = ("applications", position_of(source.data), "args")
    pools = [pool for model in deployment.models for pool in model.pools]
    plans = [planned(pool) for pool in pools]
    gpu = gpu_report(
        wanted=any(plan.on_gpu for plan in plans),
        read_driver=ask_driver,
        tensorrt_version=ask_tensorrt,
    )
    faults, notes = [], []
    for pool, plan in zip(pools, plans, strict=True):
        here = (*args, *pool.place)
        faults += list(_missing_source(pool, here))
        if not plan.on_gpu:
            continue
        faults += list(_missing_folder(pool, here))
        if gpu.gpu is None or gpu.tensorrt is None:
            notes.append(
                f"{pool.deployment} wants a TensorRT engine, and this machine has no GPU to look for one for."
            )
        elif not faults:
            faults += list(_missing_engine(pool, here, gpu))
    if faults:
        raise source.refusal(faults)
    return notes


def _missing_source(pool: Pool, path: KeyPath) -> Iterator[Fault]:
    if pool.place[:2] == ("models", "pools"):
        return  # a pool has its model's, of which that speaks
    try:
        require_source(pool.settings.model.source)
    except ModelError as error:
        yield Fault((*path, "source"), error.message)


def _missing_folder(pool: Pool, path: KeyPath) -> Iterator[Fault]:
    shared = pool.settings.model.engines
    if shared is not None and not shared.is_dir():
        yield Fault(
            (*path, "engines"),
            f"there is no folder {shared}; mount it, or name another one.",
        )


def _missing_engine(pool: Pool, path: KeyPath, gpu: GpuReport) -> Iterator[Fault]:
    found = engine(parley_home(), planned(pool), gpu, pool.settings.model.engines)
    if found.state == "missing":
        yield Fault((*path, "form"), found.advice)
