"""What the commands have in common on the command line: options, progress, complaints."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Annotated

import typer

from load.http_client import RequestFailed
from serve_app.errors import ConfigError, ParleyError
from serve_app.settings import PrecisionName

__all__ = [
    "Concurrency",
    "Conversations",
    "Duration",
    "IgnoreEos",
    "JsonFile",
    "OutputTokens",
    "Precision",
    "PromptTokens",
    "Rounds",
    "Seed",
    "Slots",
    "Source",
    "SystemTokens",
    "Temperature",
    "Threads",
    "Turns",
    "api_key",
    "bearer",
    "fresh_seed",
    "numbers",
    "run",
    "say_level",
]

Concurrency = Annotated[str, typer.Option(help="Conversations held at once, as in 1,8,32.")]
Turns = Annotated[int, typer.Option(min=1, help="Questions in a conversation.")]
SystemTokens = Annotated[
    int, typer.Option(min=0, help="Tokens of the system prompt that all share, about; 0 for none.")
]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of a question, about.")]
OutputTokens = Annotated[int, typer.Option(min=1, help="Most tokens of a reply.")]
IgnoreEos = Annotated[
    bool,
    typer.Option(help="Make every reply as long as it may be; off for servers that can't."),
]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="Of sampling; 0 is greedy.")]
Seed = Annotated[
    int | None,
    typer.Option(help="Chooses the questions. A new one each time, so that none is in a cache."),
]
Rounds = Annotated[int, typer.Option(min=1, help="Conversations per client.")]
Conversations = Annotated[
    int | None, typer.Option(min=1, help="Conversations per level, instead of --rounds.")
]
Duration = Annotated[
    float | None,
    typer.Option(min=0.1, help="Begin no conversation after so many seconds of a level."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report here too.")]
Source = Annotated[
    str | None,
    typer.Option(help="What the engine runs: `bundled`, a .gguf file, a folder, or org/name."),
]
Precision = Annotated[PrecisionName | None, typer.Option(help="Precision of the engine's weights.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Slots of the engine.")]
Threads = Annotated[
    int | None, typer.Option(min=0, help="Threads of the engine's runtime; 0 takes every core.")
]


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers above 0, with commas between them.

    Raises:
        typer.BadParameter: they are none.
    """
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        msg = f"{text!r} is no list of numbers above 0 like 1,8,32."
        raise typer.BadParameter(msg)
    return values


def api_key(variable: str | None) -> str | None:
    """Read the API key from the environment, where no list of processes shows it.

    Raises:
        ConfigError: the environment has no such variable.
    """
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        msg = f"The environment has no {variable}, which --api-key-env names."
        raise ConfigError(msg)
    return key


def bearer(key: str | None) -> dict[str, str]:
    """Return the header that a key is sent in; none without a key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


def fresh_seed(seed: int | None) -> int:
    """Return the seed that was given, else one that no server has seen."""
    return random.getrandbits(32) if seed is None else seed


def say_level(what: str, concurrency: int) -> None:
    """Tell on stderr what is being measured."""
    typer.echo(f"{what}: {concurrency} at once …", err=True)


def run(app: typer.Typer) -> None:
    """Run a command; what goes wrong becomes a sentence and an exit code that is not 0."""
    try:
        app()
    except (ParleyError, RequestFailed, OSError) as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        sys.exit(1)
