"""`parley data …`: what is kept of people, and the keys that it is encrypted with."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from serve_app.cli.console import say, show_table
from serve_app.errors import ConfigError
from serve_app.settings import Settings, parley_home

if TYPE_CHECKING:
    from serve_app.state.archive import Archive, Scope

__all__ = ["data_app"]

Result = TypeVar("Result")

data_app = typer.Typer(
    help="Find, export and erase what is kept; rotate its encryption keys.", no_args_is_help=True
)

TenantOption = Annotated[str, typer.Option(help="Whose data: the tenant of the API key.")]
UserOption = Annotated[
    str | None, typer.Option(help="One of the tenant's users, as requests name them in `user`.")
]
ConversationOption = Annotated[str | None, typer.Option(help="One conversation, by its id.")]


@data_app.command()
def find(
    *,
    tenant: TenantOption = "default",
    user: UserOption = None,
    conversation: ConversationOption = None,
) -> None:
    """List what is kept."""
    found = _with_archive(lambda archive: archive.find(_scope(tenant, user, conversation)))
    if not found:
        say("Nothing is kept.")
        return
    table = Table("id", "user", "items", "responses", "feedback", "facts", "keys", "forgotten in")
    for kept in found:
        days = f"{kept.expires_s / 86400:.1f} days" if kept.expires_s > 0 else ""
        numbers = (kept.items, kept.responses, kept.feedback, kept.facts, len(kept.keys))
        table.add_row(kept.session, kept.user or "", *map(str, numbers), days)
    show_table(table)


@data_app.command()
def export(
    *,
    tenant: TenantOption = "default",
    user: UserOption = None,
    conversation: ConversationOption = None,
    rated: Annotated[
        bool, typer.Option("--rated", help="Only turns with feedback, as fine-tuning takes them.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="A file; stdout without it.")] = None,
) -> None:
    """Write what is kept as JSON Lines, decrypted."""
    scope = _scope(tenant, user, conversation)

    async def write(archive: Archive) -> int:
        lines = archive.rated_turns(scope) if rated else archive.export(scope)
        if output is None:
            return await _write(lines, sys.stdout.buffer.write)
        with output.open("wb") as stream:
            return await _write(lines, stream.write)

    count = _with_archive(write)
    if output is not None:
        say(f"Wrote {count} lines to {output}.")


@data_app.command()
def erase(
    *,
    tenant: TenantOption = "default",
    user: UserOption = None,
    conversation: ConversationOption = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="All that is kept of the tenant.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Forget what is kept, and make sure that nothing of it is left."""
    if not (user or conversation or everything):
        msg = "Say what to erase: --user, --conversation, or --everything of the tenant."
        raise ConfigError(msg)
    scope = _scope(tenant, user, conversation)
    if not yes:
        found = _with_archive(lambda archive: archive.find(scope))
        typer.confirm(f"Erase {len(found)} conversations and profiles for good?", abort=True)
    erased = _with_archive(lambda archive: archive.erase(scope))
    items, responses = sum(k.items for k in erased), sum(k.responses for k in erased)
    facts, keys = sum(k.facts for k in erased), sum(len(k.keys) for k in erased)
    say(
        f"Erased {len(erased)} conversations and profiles: {items} items, {responses} responses, "
        f"{facts} facts, {keys} keys. Nothing of it is left in Redis."
    )


@data_app.command()
def rotate() -> None:
    """Make a new encryption key, which seals from the next start on; the old ones still open."""
    from serve_app.state.sealing import key_file

    settings = Settings.load().encryption
    if settings.keys is not None:
        msg = "The keys come from PARLEY_ENCRYPTION_KEYS: add one there, behind the others."
        raise ConfigError(msg)
    file = key_file(settings, parley_home())
    say(f"Made the key {file.rotate()} in {file.file}.")
    say("Start Parley again to seal with it; then `parley data reseal` for what is there already.")


@data_app.command()
def reseal(
    *,
    retire: Annotated[
        bool, typer.Option("--retire", help="Then forget the old keys, if nothing needs them.")
    ] = False,
) -> None:
    """Encrypt with the newest key what is encrypted with another one, or not at all."""
    from serve_app.state.sealing import key_file

    settings = Settings.load().encryption
    if not settings.enabled:
        msg = "encryption.enabled is false: there is no key to seal with."
        raise ConfigError(msg)
    changed, left = _with_archive(lambda archive: archive.reseal())
    say(f"Sealed {changed} values with the newest key.")
    for key, count in left.items():
        say(
            f"{count} short-lived values still need {key or 'no key'}; they are forgotten by themselves."
        )
    if retire and left:
        msg = "Old keys are still needed and stay; repeat when those values are forgotten."
        raise ConfigError(msg)
    if retire and settings.keys is None:
        retired = key_file(settings, parley_home()).retire()
        say(f"Forgot {len(retired)} old keys.")


def _scope(tenant: str, user: str | None, conversation: str | None) -> Scope:
    from serve_app.state.archive import Scope

    return Scope(tenant, user, conversation)


def _with_archive(work: Callable[[Archive], Awaitable[Result]]) -> Result:
    from serve_app.state.archive import Archive
    from serve_app.state.connection import RedisPool
    from serve_app.state.sealing import open_seal

    settings = Settings.load()

    async def run() -> Result:
        redis = RedisPool.open(settings.redis, parley_home())
        seal = open_seal(settings.encryption, parley_home())
        try:
            return await work(Archive(redis, key_prefix=settings.redis.key_prefix, seal=seal))
        finally:
            await redis.close()

    return asyncio.run(run())


async def _write(lines: AsyncIterator[dict[str, Any]], write: Callable[[bytes], object]) -> int:
    import orjson

    count = 0
    async for line in lines:
        write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        count += 1
    return count
