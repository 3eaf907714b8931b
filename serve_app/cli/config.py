"""`parley config …`: the settings in effect, and deploy files."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import BaseModel

from serve_app.cli.console import say
from serve_app.settings import Settings

__all__ = ["config_app"]

config_app = typer.Typer(help="Show settings, check deploy files.", no_args_is_help=True)

_WIDTH = 100


@config_app.command()
def show(
    *,
    config: Annotated[
        Path | None, typer.Option(help="Deploy file; deploy/local.yaml if none is named.")
    ] = None,
) -> None:
    """Print every setting as YAML: what it means and the value in effect, secrets masked."""
    from serve_app.cluster.deploy_file import load_deployment

    deployment = load_deployment(config)
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    typer.echo(f"# {deployment.file} with PARLEY_* of the environment above it.")
    for name in Settings.model_fields:
        section: BaseModel = getattr(deployment.settings, name)
        summary = (type(section).__doc__ or "").strip().splitlines()[0]
        typer.echo(f"\n# {summary}\n{name}:")
        values = section.model_dump(mode="json")
        for key, field in type(section).model_fields.items():
            _echo_comment(field.description or "")
            changed = values[key] != defaults[name].model_dump(mode="json")[key]
            first, *rest = _entry(key, values[key]).splitlines()
            typer.echo(f"  {first}{'  # not the default' if changed else ''}")
            for line in rest:
                typer.echo(f"  {line}")


@config_app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A deploy file, as `serve deploy` takes it.")],
) -> None:
    """Check a deploy file strictly, and that its models and engines are here: every fault with its line."""
    from serve_app.cluster.deploy_file import load_deployment
    from serve_app.cluster.deploy_resources import require_resources

    deployment = load_deployment(file)
    notes = require_resources(deployment)
    served = []
    for model in deployment.models:
        own = model.settings.model
        precisions = " and ".join(pool.settings.model.precision for pool in model.pools)
        served.append(f"{f'{own.name}: ' if own.name else ''}{own.source} ({precisions})")
    gpus = f" and {deployment.gpus:g} GPUs" if deployment.gpus else ""
    say(
        f"{file} is fine: it serves {', '.join(served)} at {deployment.url} "
        f"and needs up to {deployment.cpus} of Ray's CPUs{gpus}."
    )
    for note in notes:
        say(note, "yellow")


def _echo_comment(text: str) -> None:
    for line in textwrap.wrap(text, _WIDTH - 4):
        typer.echo(f"  # {line}")


def _entry(key: str, value: object) -> str:
    return yaml.safe_dump({key: value}, width=10_000, allow_unicode=True).strip()
