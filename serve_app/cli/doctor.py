"""`parley doctor`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from serve_app.cli.console import say, show_table
from serve_app.settings import parley_home

__all__ = ["doctor"]

_SHOWN = {"ok": ("ok", "green"), "optional": ("optional", "dim"), "missing": ("missing", "red")}


def doctor(
    *,
    config: Annotated[
        Path | None, typer.Option(help="Deploy file; deploy/local.yaml if none is named.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has, what would serve the model, and what to do about what is missing.

    The exit code is 0 if it can serve.
    """
    from serve_app.cluster.deploy_file import load_deployment
    from serve_app.doctor.examination import examine

    seen = examine(parley_home(), load_deployment(config).settings)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(seen) | {"can_serve": seen.can_serve}, indent=2))
    else:
        table = Table("", "state", "found", "what to do")
        for finding in seen.findings:
            state, style = _SHOWN[finding.state]
            table.add_row(
                Text(finding.name),
                Text(state, style=style),
                Text(finding.found),
                Text(finding.advice),
            )
        show_table(table)
        if seen.can_serve and seen.plan is not None:
            for plan in (seen.plan, *seen.further):
                say(
                    f"This machine can serve {plan.source}: {plan.precision} in the {plan.form} form, "
                    f"computed by {plan.backend}."
                )
    if not seen.can_serve:
        if not as_json:
            say("This machine can't serve it as it is.", "red")
        raise typer.Exit(1)
