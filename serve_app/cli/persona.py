"""`parley persona …`: list, check and try personas, without a cluster."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from serve_app.cli.console import complain, say, show_table
from serve_app.settings import Settings, parley_home

if TYPE_CHECKING:
    from serve_app.dialogue.nlu.intent_store import IntentStore
    from serve_app.dialogue.personas.catalog import PersonaCatalog
    from serve_app.dialogue.personas.intent_accuracy import IntentAccuracy
    from serve_app.dialogue.personas.loading import PersonaFile

__all__ = ["persona_app"]

persona_app = typer.Typer(help="List, check and try personas.", no_args_is_help=True)

_MOST_MISTAKES = 10

_Which = Annotated[str, typer.Argument(help="A persona file, or the name of one in the folder.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@persona_app.command("list")
def list_personas(*, as_json: _AsJson = False) -> None:
    """List the personas of the folder that `dialogue.personas` names, else those that ship."""
    catalog = _catalog()
    found = catalog.personas()
    if as_json:
        rows = [
            {
                "name": each.persona.name,
                "title": each.persona.title,
                "file": str(each.file),
                "intents": list(each.persona.intents),
                "slots": list(each.persona.slots),
                "rules": [rule.name for rule in each.persona.policy],
                "languages": each.persona.understanding.languages,
            }
            for each in found
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not found:
        say(f"There is no persona in {catalog.folder}; a file NAME.yaml there is the persona NAME.")
    else:
        table = Table("persona", "title", "intents", "slots", "rules", "languages", "file")
        for each in found:
            persona = each.persona
            table.add_row(
                persona.name,
                persona.title,
                *(str(len(part)) for part in (persona.intents, persona.slots, persona.policy)),
                ", ".join(persona.understanding.languages),
                str(each.file),
            )
        show_table(table)
    faults = catalog.faults()
    for fault in faults.values():
        complain(fault)
    if faults:
        raise typer.Exit(1)


@persona_app.command()
def check(which: _Which) -> None:
    """Check a persona strictly, fit its intents, and measure them.

    Prints every fault with its line, or how well intents are told apart: on the examples, on each
    example by a model that hasn't seen it, and on the sentences that are held out.
    """
    from serve_app.dialogue.personas.intent_accuracy import cross_validated, held_out, training
    from serve_app.dialogue.personas.understanding import intent_examples

    file = _find(which)
    persona, store = file.persona, _store()
    counts = (
        _counted(len(persona.intents), "intent"),
        _counted(len(persona.slots), "slot"),
        _counted(len(persona.policy), "rule"),
    )
    say(f"{file.file} is fine: {', '.join(counts)}.")
    examples = intent_examples(persona)
    if not examples:
        return
    model = store.model(persona.name, examples)
    crossed = cross_validated(persona)
    parts = {
        "examples": training(persona, model),
        "examples, each unseen": crossed,
        "held out": held_out(persona, model),
    }
    show_table(_accuracy_table({name: part for name, part in parts.items() if part is not None}))
    if crossed.mistakes:
        say("Taken for another intent while unseen, the most certain first:")
        for each in crossed.mistakes[:_MOST_MISTAKES]:
            say(
                f"  {each.sentence!r}: {each.found or 'none'} ({each.confidence:.2f}) instead of "
                f"{each.expected or 'none'}"
            )
        say("More examples that are said differently help, and so do intents that differ more.")
    say(f"The model is in {store.file(persona.name, examples)}.")


@persona_app.command("try")
def try_persona(which: _Which, *, as_json: _AsJson = False) -> None:
    """Read turns of one conversation from stdin; print what is understood and decided, and why.

    No model answers, and nothing is stored but the fitted intents.
    """
    from serve_app.dialogue.policy.rehearsal import Rehearsal

    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # rather than end over one odd character
    rehearsal = Rehearsal(_find(which).persona, _store())
    interactive = sys.stdin.isatty()
    if interactive and rehearsal.greeting is not None:
        say(rehearsal.greeting)
    while True:
        if interactive:
            typer.echo("› ", nl=False)
        line = sys.stdin.readline()
        if not line:
            break
        if not line.strip():
            continue
        turn = rehearsal.say(line.rstrip("\n"))
        if as_json:
            typer.echo(json.dumps(turn.to_json(), ensure_ascii=False))
            continue
        if not interactive:
            say(f"› {turn.understanding.text}")
        for row in turn.lines():
            say(f"  {row}")


def _accuracy_table(parts: dict[str, IntentAccuracy]) -> Table:
    table = Table("intents")
    columns = ("sentences", "accuracy", "macro-F1", "above the threshold", "right of these")
    for column in columns:
        table.add_column(column, justify="right")
    for name, part in parts.items():
        table.add_row(
            name,
            str(part.score.sentences),
            f"{part.score.accuracy:.1%}",
            f"{part.score.macro_f1:.3f}",
            f"{part.recognised:.1%}",
            f"{part.right_of_recognised:.1%}",
        )
    return table


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _find(which: str) -> PersonaFile:
    from serve_app.dialogue.personas.loading import read_persona

    file = Path(which)
    if file.suffix in (".yaml", ".yml") or len(file.parts) > 1:
        return read_persona(file)
    return _catalog().get(which)


def _catalog() -> PersonaCatalog:
    from serve_app.dialogue.personas.catalog import PersonaCatalog

    return PersonaCatalog.of(Settings.load().dialogue)


def _store() -> IntentStore:
    from serve_app.dialogue.nlu.intent_store import IntentStore

    return IntentStore(parley_home() / "personas")
