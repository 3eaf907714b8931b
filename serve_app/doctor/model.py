"""The model: what the settings have served, in which form, precision and backend, and what is prepared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve_app.doctor.finding import Finding
from serve_app.doctor.gpu import GpuReport
from serve_app.errors import ModelError, ParleyError
from serve_app.models.decoder_interface import Form
from serve_app.models.engine_build.engine_manifest import EngineEnvironment, GpuArchitecture
from serve_app.models.engine_build.model_engine import find_model_engine
from serve_app.models.recipe import chosen_form
from serve_app.models.sources import require_source
from serve_app.models.store import ModelStore, PreparedModel
from serve_app.routing.pools import Pool
from serve_app.routing.serving import BackendName, chosen_backend

__all__ = ["Plan", "engine", "planned", "prepared_models"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be served.

    Attributes:
        source: the model's source.
        max_len: most tokens of one sequence.
        form: form of its graph.
        precision: precision of its weights.
        backend: what computes.
        deployment: the pool that would.
    """

    source: str
    max_len: int
    form: Form
    precision: str
    backend: BackendName
    deployment: str = "Generator"

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.backend == "tensorrt"


def planned(pool: Pool) -> Plan:
    """Return what a pool would serve.

    Raises:
        ModelError: this machine can't run the form.
    """
    settings = pool.settings
    model = settings.model
    return Plan(
        model.source,
        settings.generator.max_len,
        chosen_form(model.precision, model.form),
        model.precision,
        chosen_backend(settings),
        pool.deployment,
    )


def prepared_models(home: Path, plan: Plan) -> Finding:
    """Say which models are prepared, and whether the one to be served is among them.

    Args:
        home: PARLEY_HOME.
        plan: what would be served.
    """
    store = ModelStore(home)
    models, damaged = store.list(), store.damaged()
    found = ", ".join(model.path.name for model in models) or "none"
    if damaged:
        broken = ", ".join(path.name for path, _ in damaged)
        return Finding(
            "models",
            "optional",
            f"{found}; damaged: {broken}",
            "`parley model remove NAME` deletes a damaged one.",
        )
    if _matching(models, plan) is None:
        if wrong := _no_source(plan):
            return Finding("models", "missing", found, wrong)
        return Finding("models", "ok", found, f"{plan.source} is prepared at the first start.")
    return Finding("models", "ok", found)


def prepared_model(home: Path, plan: Plan) -> Finding:
    """Say whether the model of a further pool is prepared.

    Args:
        home: PARLEY_HOME.
        plan: what the pool would serve.
    """
    model = _matching(ModelStore(home).list(), plan)
    if model is not None:
        return Finding(plan.deployment, "ok", model.path.name)
    found = f"{plan.source}, {plan.precision} in the {plan.form} form"
    if wrong := _no_source(plan):
        return Finding(plan.deployment, "missing", found, wrong)
    return Finding(plan.deployment, "ok", found, "It is prepared at the first start.")


def engine(home: Path, plan: Plan, gpu: GpuReport, shared: Path | None) -> Finding:
    """Say whether the model has a TensorRT engine that runs here.

    Args:
        home: PARLEY_HOME.
        plan: what would be served, on a GPU.
        gpu: what there is of one.
        shared: folder that machines share engines through.
    """
    name = "engine" if plan.deployment == "Generator" else f"engine of {plan.deployment}"
    model = _matching(ModelStore(home).list(), plan)
    if model is None or gpu.gpu is None or gpu.tensorrt is None:
        advice = "`parley model build` prepares the model and builds it, on a machine with a GPU."
        return Finding(name, "missing", "none", advice)
    environment = EngineEnvironment(gpu.tensorrt, GpuArchitecture.of(gpu.gpu))
    try:
        return Finding(name, "ok", str(find_model_engine(model, environment, shared).path))
    except ParleyError as error:
        return Finding(name, "missing", "none that fits", error.message)


def _no_source(plan: Plan) -> str | None:
    """Return why a model can't be prepared, as far as that shows without reading one."""
    try:
        require_source(plan.source)
    except ModelError as error:
        return error.message
    return None


def _matching(models: tuple[PreparedModel, ...], plan: Plan) -> PreparedModel | None:
    for model in models:
        made = model.manifest
        # A source that is a path is kept absolute, and one of the hub with its revision.
        same = made.source in (plan.source, str(Path(plan.source).expanduser().absolute()))
        same = same or made.source.startswith(f"{plan.source}@")
        same = same and (made.form, made.precision) == (plan.form, plan.precision)
        if made.cache_length is not None:
            length = min(plan.max_len, made.architecture.context_length)
            same = same and made.cache_length == length
        if same and model.whole:
            return model
    return None
