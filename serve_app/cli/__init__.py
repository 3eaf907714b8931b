"""The command `parley`: one module a group of commands, each of which delegates."""

from __future__ import annotations

import os
import sys

import typer

import serve_app
from serve_app.cli.chat import chat
from serve_app.cli.config import config_app
from serve_app.cli.console import complain, sentence_of
from serve_app.cli.data import data_app
from serve_app.cli.doctor import doctor
from serve_app.cli.explain import explain
from serve_app.cli.key import key_app
from serve_app.cli.lifecycle import down, up
from serve_app.cli.model import model_app
from serve_app.cli.ops import ops_app
from serve_app.cli.persona import persona_app
from serve_app.cli.status import status
from serve_app.errors import ParleyError

__all__ = ["app", "main"]

app = typer.Typer(
    name="parley",
    help="LLM dialogue from a cluster: `parley up`, then `parley chat`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(up)
app.command()(down)
app.command()(status)
app.command()(doctor)
app.command()(chat)
app.command()(explain)
app.add_typer(model_app, name="model")
app.add_typer(config_app, name="config")
app.add_typer(key_app, name="key")
app.add_typer(data_app, name="data")
app.add_typer(persona_app, name="persona")
app.add_typer(ops_app, name="ops")


@app.callback(invoke_without_command=True)
def _top(
    *,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),  # noqa: FBT003
) -> None:
    if version:
        typer.echo(serve_app.__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; what goes wrong becomes a sentence and an exit code that is not 0.

    PARLEY_DEBUG=1 shows the traceback instead.
    """
    if os.environ.get("PARLEY_DEBUG") == "1":
        app()
    try:
        app()
    except ParleyError as error:
        complain(error.message)
    except OSError as error:
        complain(sentence_of(error))
    except Exception as error:  # noqa: BLE001 - reported, never swallowed; nobody wants a traceback
        complain(f"{type(error).__name__}: {error}. PARLEY_DEBUG=1 shows where it comes from.")
    sys.exit(1)
