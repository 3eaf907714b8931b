"""`parley status`."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from serve_app.cli.console import say, show_table
from serve_app.settings import parley_home

if TYPE_CHECKING:
    from serve_app.cluster.status import ClusterStatus

__all__ = ["status"]


def status(
    *,
    api_key: Annotated[
        str | None, typer.Option(envvar="PARLEY_API_KEY", help="Better given in the environment.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show deployments, replicas, model, Redis and load; the exit code is 0 if all is well."""
    from serve_app.cluster.status import look

    seen = look(parley_home(), api_key)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(seen), indent=2))
    elif seen.phase == "stopped":
        say(f"Nothing runs in {parley_home()}; `parley up` starts it.")
    else:
        _show(seen)
    if seen.phase != "running" or seen.problems:
        raise typer.Exit(1)


def _show(seen: ClusterStatus) -> None:
    facts = Table(show_header=False, box=None, pad_edge=False)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen.began))
    for name, value in (
        ("phase", f"{seen.phase} since {since}"),
        ("HTTP", seen.url),
        ("ready", "yes" if seen.ready else "no"),
        (
            "models" if seen.further_models else "model",
            ", ".join((seen.model, *seen.further_models)),
        ),
        ("Redis", seen.redis),
        ("processes", f"{seen.processes}, {seen.memory_bytes / 1e6:.0f} MB resident"),
        ("deploy file", seen.deploy_file),
        ("dashboard", seen.dashboard),
        ("logs", seen.logs),
    ):
        facts.add_row(Text(name, style="dim"), Text(value))
    show_table(facts)
    deployments = Table("deployment", "status", "replicas", "processes", "message")
    for one in seen.deployments:
        style = "green" if one.status == "HEALTHY" else "yellow"
        deployments.add_row(
            one.name,
            Text(one.status, style=style),
            f"{one.running}/{one.target}",
            ", ".join(map(str, one.pids)),
            Text(one.message.splitlines()[-1] if one.message else ""),
        )
    show_table(deployments)
    if seen.load or seen.load_refused:
        load = Table("load", "now")
        for name, now in sorted(seen.load.items()):
            load.add_row(name, f"{now:g}")
        if seen.load_refused:
            load.add_row("unknown", seen.load_refused)
        show_table(load)
    for problem in seen.problems:
        say(problem, "yellow")
