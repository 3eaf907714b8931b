"""`parley explain`: where the time of a request went."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.api.account import read_account
from serve_app.cli.chat_client import ChatClient
from serve_app.cli.console import say, show_table
from serve_app.cli.running import running_url
from serve_app.cli.waterfall import picture, summary, waterfall
from serve_app.errors import AccountNotFound, ParleyError

__all__ = ["explain"]

# An account is written some time after its request is over.
_PATIENCE_S = 1.0
_PAUSE_S = 0.25


def explain(
    request: Annotated[str, typer.Argument(help="Id of a reply, or the x-request-id it carried.")],
    *,
    url: Annotated[
        str | None, typer.Option(help="Server; the one that `parley up` started if none is named.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="PARLEY_API_KEY", help="Better given in the environment.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    picture_file: Annotated[
        Path | None, typer.Option("--picture", help="Write the waterfall to this file, as SVG.")
    ] = None,
) -> None:
    """Show where the time of a request went, stage by stage: transfer and compute."""
    with ChatClient(url or running_url(), api_key) as client:
        found = _found(client, request)
    account = read_account(found)
    if picture_file is not None:
        picture_file.write_text(picture(account), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    say(summary(account))
    show_table(waterfall(account))


def _found(client: ChatClient, request: str) -> dict[str, Any]:
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return client.account(request)
        except ParleyError as error:
            if error.code != AccountNotFound.code or time.monotonic() > give_up:
                raise
        time.sleep(_PAUSE_S)
