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
from serve_app.settings import FormName, PrecisionName, Settings, parley_home

if TYPE_CHECKING:
    from serve_app.models.store import ModelStore, PreparedModel

__all__ = ["model_app"]

model_app = typer.Typer(
    help="Prepare, list, inspect, lint and remove models.", no_args_is_help=True
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


def _refuse_served(folder: Path) -> None:
    from serve_app.cluster.status import serving

    run = serving(parley_home())
    if run is not None and run.model_folder == str(folder):
        msg = (
            f"{folder.name} is being served at {run.url}. End that with `parley down` first, or "
            "remove it with --force: then replicas that start later must prepare it again."
        )
        raise ConfigError(msg)


def _manifest(model: PreparedModel) -> dict[str, object]:
    return model.manifest.model_dump(mode="json")


def _bytes(model: PreparedModel) -> int:
    return sum(entry.bytes for entry in model.manifest.files.values())
