"""`parley model …`: the store of prepared models."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from serve_app.cli.console import ConsoleSteps, complain, say, show_table
from serve_app.errors import ConfigError, ModelError
from serve_app.models.engine_build.options import BuildOptions, HardwareCompatibility, Refit
from serve_app.settings import FormName, PrecisionName, Settings, parley_home

if TYPE_CHECKING:
    from serve_app.cluster.deploy_file import Deployment
    from serve_app.models.store import ModelStore, PreparedModel

__all__ = ["model_app"]

model_app = typer.Typer(
    help="Prepare, list, inspect, lint, build and remove models.", no_args_is_help=True
)

_Name = Annotated[str, typer.Argument(help="Name, folder or path of a prepared model.")]


@model_app.command()
def prepare(
    source: Annotated[
        str | None,
        typer.Argument(help="`bundled`, a .gguf file, a folder of safetensors, or org/name."),
    ] = None,
    *,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Precision of the weights.")
    ] = None,
    form: Annotated[FormName | None, typer.Option(help="Form of the decoder graph.")] = None,
    cache_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens of a slot in the standard form; else generator.max_len. At most the context.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read one that is there already; make it anew if damaged."),
    ] = False,
) -> None:
    """Turn a checkpoint into what the engine runs; one that is there already is reused."""
    settings = Settings.load()
    wanted = settings.model
    with ConsoleSteps() as steps:
        steps.begin(f"Preparing {source or wanted.source}")
        prepared = _store().prepare(
            source or wanted.source,
            precision=precision or wanted.precision,
            form=form or wanted.form,
            cache_length=cache_length or settings.generator.max_len,
            verify=verify,
            progress=steps.update,
        )
    say(f"{prepared.manifest.name} ({prepared.manifest.precision}) is in {prepared.path}.")


@model_app.command("list")
def list_models(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the prepared models."""
    store = _store()
    models = store.list()
    if as_json:
        typer.echo(
            json.dumps([_manifest(model) | {"path": str(model.path)} for model in models], indent=2)
        )
    elif not models:
        say("No model is prepared; `parley model prepare` prepares the bundled one.")
    else:
        table = Table("model", "precision", "form", "MB", "context", "prepared", "folder")
        for model in models:
            made = model.manifest
            table.add_row(
                made.name,
                made.precision,
                made.form,
                f"{_bytes(model) / 1e6:.0f}",
                str(made.context_length),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(made.created)),
                model.path.name,
            )
        show_table(table)
    for path, reason in store.damaged():
        complain(f"{path.name} is damaged: {reason}")


@model_app.command()
def inspect(
    name: _Name,
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare sizes and hashes of all files.")
    ] = False,
) -> None:
    """Print a model's manifest."""
    model = _store().find(name)
    if verify:
        with ConsoleSteps(aside=True) as steps:
            steps.begin("Verifying")
            model.verify(steps.update)
    typer.echo(json.dumps(_manifest(model), indent=2))


@model_app.command()
def lint(
    target: Annotated[
        str, typer.Argument(help="An .onnx file, or name, folder or path of a prepared model.")
    ],
) -> None:
    """Find what TensorRT's ONNX parser would refuse in a graph; exit code 1 if there is anything."""
    from serve_app.models.decoder_interface import GRAPH_FILE
    from serve_app.models.tensorrt_lint import lint_graph

    file = Path(target).expanduser()
    path = file if file.suffix == ".onnx" else _store().find(target).path / GRAPH_FILE
    offences = lint_graph(path)
    for offence in offences:
        say(str(offence))
    if offences:
        msg = (
            f"TensorRT's parser would not take {path}: {len(offences)} faults. "
            "`parley model prepare --form standard` writes a graph that it should take."
        )
        raise ModelError(msg)
    say(f"TensorRT's parser should take {path}.")


@model_app.command()
def build(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name, folder or path of a prepared model in the standard form; else every one that the "
            "deploy file has a GPU compute, prepared first."
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None, typer.Option(help="Deploy file; deploy/local.yaml if none is named.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Sequences that decode at once; else generator.slots.")
    ] = None,
    prefill_chunk: Annotated[
        int | None,
        typer.Option(
            min=1, help="Prompt tokens that are computed at once; else generator.prefill_chunk."
        ),
    ] = None,
    workspace_mb: Annotated[
        int | None,
        typer.Option(min=1, help="Most device memory of one layer; else TensorRT's own."),
    ] = None,
    optimization_level: Annotated[
        int, typer.Option(min=0, max=5, help="0 is built soonest, 5 tries most.")
    ] = 3,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Also for later TensorRT 11.")
    ] = False,
    hardware_compatibility: Annotated[
        HardwareCompatibility, typer.Option(help="Which other GPUs it runs on.")
    ] = "none",
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Weights may stay in the host's memory.")
    ] = False,
    refit: Annotated[
        Refit, typer.Option(help="Whether weights can be replaced: kept in the plan, or left out.")
    ] = "none",
    tf32: Annotated[
        bool, typer.Option("--tf32", help="fp32 products may be rounded to 10 bits.")
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of engines that machines share; else model.engines."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build it even if it is there.")
    ] = False,
) -> None:
    """Build the TensorRT engine of a model for this GPU; one that is there already is reused."""
    from serve_app.cluster.deploy_file import load_deployment
    from serve_app.models.engine_build.machine import open_machine
    from serve_app.models.engine_build.model_engine import build_model_engine

    deployment = load_deployment(config)
    options = BuildOptions(
        workspace_bytes=workspace_mb and workspace_mb << 20,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatibility=hardware_compatibility,
        weight_streaming=weight_streaming,
        refit=refit,
        tf32=tf32,
    )
    machine = open_machine()
    wanted = [deployment.settings] if name is not None else _on_gpus(deployment)
    for settings in wanted:
        with ConsoleSteps() as steps:
            model = _store().find(name) if name is not None else _standard_model(settings, steps)
            steps.begin(f"Building the engine of {model.manifest.name} for {machine.gpu.name}")
            engine = build_model_engine(
                model,
                machine,
                slots=slots or settings.generator.slots,
                prefill_chunk=prefill_chunk
                or min(settings.generator.prefill_chunk, model.manifest.context_length),
                options=options,
                store=store or settings.model.engines,
                rebuild=rebuild,
                progress=steps.update,
            )
        say(f"The engine of {engine.manifest.model} is in {engine.path}.")


@model_app.command()
def refit(
    engine: Annotated[Path, typer.Argument(help="Folder of an engine built with --refit.")],
    name: _Name,
    *,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of engines that machines share; else beside the model."),
    ] = None,
) -> None:
    """Put a model's weights into an engine that was built from one of the same shape."""
    from serve_app.models.decoder_interface import GRAPH_FILE
    from serve_app.models.engine_build.engine_manifest import EngineManifest
    from serve_app.models.engine_build.engine_store import Engine
    from serve_app.models.engine_build.machine import open_machine
    from serve_app.models.engine_build.refit import refit_engine

    built = Engine(engine, EngineManifest.read(engine))
    model = _store().find(name)
    machine = open_machine()
    with ConsoleSteps() as steps:
        steps.begin(f"Refitting {engine.name} with {model.manifest.name}")
        refitted = refit_engine(
            built,
            model.path / GRAPH_FILE,
            store=store,
            name=model.manifest.name,
            machine=machine,
            progress=steps.update,
        )
    say(f"The engine of {refitted.manifest.model} is in {refitted.path}.")


@model_app.command()
def remove(
    name: _Name,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it is being served from this home.")
    ] = False,
) -> None:
    """Delete a prepared model; its source is left alone."""
    store = _store()
    if not force:
        _refuse_served(store.locate(name))
    say(f"Removed {store.remove(name)}.")


def _store() -> ModelStore:
    from serve_app.models.store import ModelStore

    return ModelStore(parley_home())


def _on_gpus(deployment: Deployment) -> list[Settings]:
    """Return the settings of the pools that a GPU computes; the first model's where none does."""
    from serve_app.routing.serving import chosen_backend

    pools = [pool.settings for model in deployment.models for pool in model.pools]
    return [its for its in pools if chosen_backend(its) == "tensorrt"] or [deployment.settings]


def _standard_model(settings: Settings, steps: ConsoleSteps) -> PreparedModel:
    wanted = settings.model
    steps.begin(f"Preparing {wanted.source} ({wanted.precision}, standard)")
    return _store().prepare(
        wanted.source,
        precision=wanted.precision,
        form="standard",
        cache_length=settings.generator.max_len,
        progress=steps.update,
    )


def _refuse_served(folder: Path) -> None:
    from serve_app.cluster.status import serving

    run = serving(parley_home())
    if run is not None and str(folder) in (run.model_folder, *run.further_folders):
        msg = (
            f"{folder.name} is being served at {run.url}. End that with `parley down` first, or "
            "remove it with --force: then replicas that start later must prepare it again."
        )
        raise ConfigError(msg)


def _manifest(model: PreparedModel) -> dict[str, object]:
    return model.manifest.model_dump(mode="json")


def _bytes(model: PreparedModel) -> int:
    return sum(entry.bytes for entry in model.manifest.files.values())
