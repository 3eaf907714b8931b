"""`parley key …`: who may call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from serve_app.cli.console import say, show_table
from serve_app.settings import Settings, parley_home

if TYPE_CHECKING:
    from serve_app.state.keys import KeyRing

__all__ = ["key_app"]

key_app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)


@key_app.command()
def create(
    name: Annotated[str, typer.Argument(help="What you call the key.")],
    *,
    tenant: Annotated[
        str, typer.Option(help="Whose conversations it opens; keys of one tenant share them.")
    ] = "default",
) -> None:
    """Make a key and print it, once; only its hash is stored."""
    # Alone on stdout, so that a script can take it.
    key = _ring().create(name, tenant)
    typer.echo(key)
    typer.echo("Keep it now: it can't be shown again.", err=True)


@key_app.command("list")
def list_keys() -> None:
    """List the keys, without the secrets."""
    keys = _ring().list()
    if not keys:
        say("There is no API key; without one, only this machine may call.")
        return
    table = Table("name", "id", "tenant", "created")
    for key in keys:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
        table.add_row(key.name, key.id, key.tenant, made)
    show_table(table)


@key_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name or id of the key.")],
) -> None:
    """Take a key back; it is refused from its next request on."""
    say(f"Revoked {_ring().revoke(name).name}.")


def _ring() -> KeyRing:
    from serve_app.state.keys import KeyRing

    return KeyRing.open(Settings.load().auth, parley_home())
