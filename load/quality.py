"""`python -m load.quality`: what a precision costs, as distance from the same model in fp32."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tokenizers import Tokenizer

from load import command_line as options
from load.divergence import Divergence
from load.report import console, write_json
from load.window_decoder import WindowDecoder
from serve_app.errors import ConfigError
from serve_app.models.store import ModelStore, PreparedModel
from serve_app.models.tokenizer_files import TOKENIZER_FILE
from serve_app.settings import Settings, parley_home

__all__ = ["app", "compare", "windows"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

_TEXTS = Path(__file__).parent / "text"
_EXACT: Final = "fp32"
_ALL = "all"


@app.command()
def quality(
    *,
    model: options.Source = None,
    precision: options.Precision = None,
    width: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 256,
    windows_each: Annotated[
        int | None, typer.Option("--windows", min=1, help="Most windows of each text.")
    ] = None,
    threads: options.Threads = 0,
    json: options.JsonFile = None,
) -> None:
    """Compare a model with its fp32 form on texts of several kinds.

    Prints KL per token (nats), top-1 agreement and perplexity. What no option says is as in
    `parley config show`. Models that aren't prepared yet are prepared first.
    """
    wanted = Settings.load().model
    source, chosen = model or wanted.source, precision or wanted.precision
    with _progress() as progress:
        task = progress.add_task("", total=None)

        def say(stage: str, done: int, total: int) -> None:
            progress.update(task, description=stage, completed=done, total=total or None)

        store = ModelStore(parley_home())
        exact = store.prepare(source, precision=_EXACT, progress=say)
        other = store.prepare(source, precision=chosen, form=wanted.form, progress=say)
        found = compare(
            exact, other, width=width, most=windows_each, threads=threads or None, on_window=say
        )
    console.print(_table(other, found, width))
    if json is not None:
        write_json(
            json,
            {
                "model": other.manifest.name,
                "precision": other.manifest.precision,
                "width": width,
                "texts": {name: _as_json(each) for name, each in found.items()},
            },
        )


def compare(
    exact: PreparedModel,
    other: PreparedModel,
    *,
    width: int = 256,
    most: int | None = None,
    threads: int | None = None,
    on_window: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Divergence]:
    """Run two forms of one model over the texts.

    Args:
        exact: the one that the other is held against.
        other: has the same tokenizer.
        width: tokens of a window.
        most: windows taken of each text; None takes all.
        threads: threads of the runtime; None takes every core.
        on_window: told of the work, the windows done and their total.

    Returns:
        By text, in alphabetical order, and for `all` of them together.

    Raises:
        ModelError: a model can't be loaded.
        ConfigError: the texts are shorter than a window.
    """
    tokenizer = Tokenizer.from_file(str(other.path / TOKENIZER_FILE))
    work = {
        path.stem: list(windows(tokenizer, path.read_text(encoding="utf-8"), width))[:most]
        for path in sorted(_TEXTS.glob("*.txt"))
    }
    total = sum(map(len, work.values()))
    if not all(work.values()):
        short = ", ".join(name for name, found in work.items() if not found)
        msg = (
            f"A window of {width} tokens is longer than a whole text ({short}); set --width lower."
        )
        raise ConfigError(msg)
    cores = threads or len(os.sched_getaffinity(0))
    first, second = (WindowDecoder(each, width=width, threads=cores) for each in (exact, other))
    found: dict[str, Divergence] = {}
    done = 0
    on_window("comparing", 0, total)
    for name, texts in work.items():
        found[name] = Divergence()
        for window in texts:
            found[name] += Divergence.of(first.logits(window), second.logits(window), window)
            done += 1
            on_window("comparing", done, total)
    return found | {_ALL: sum(found.values(), Divergence())}


def windows(tokenizer: Tokenizer, text: str, width: int) -> Iterator[list[int]]:
    """Cut a text into windows that don't overlap; what is left over at its end isn't used.

    Each begins with whatever the tokenizer puts in front of a text, since a model that was trained
    with such a token predicts badly without it.
    """
    opening: list[int] = tokenizer.encode("").ids
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    step = width - len(opening)
    for start in range(0, len(tokens) - step + 1, step):
        yield opening + tokens[start : start + step]


def _table(model: PreparedModel, found: dict[str, Divergence], width: int) -> Table:
    manifest = model.manifest
    title = f"{manifest.name}: {manifest.precision} against {_EXACT}, windows of {width} tokens"
    table = Table("text", title=title, title_justify="left")
    for name in found:
        table.add_column(name, justify="right")

    def add(name: str, show: Callable[[Divergence], str]) -> None:
        table.add_row(name, *map(show, found.values()))

    add("KL per token, nats", lambda each: f"{each.kl_per_token:.4f}")
    add("top-1 agreement", lambda each: f"{each.agreement:.1%}")
    add(f"perplexity, {manifest.precision}", lambda each: f"{each.perplexity:.2f}")
    add(f"perplexity, {_EXACT}", lambda each: f"{each.exact_perplexity:.2f}")
    add("tokens", lambda each: f"{each.positions}")
    return table


def _as_json(found: Divergence) -> dict[str, float]:
    return {
        **dataclasses.asdict(found),
        "kl_per_token": found.kl_per_token,
        "agreement": found.agreement,
        "perplexity": found.perplexity,
        "exact_perplexity": found.exact_perplexity,
    }


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


if __name__ == "__main__":
    options.run(app)
