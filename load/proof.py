"""`python -m load.proof`: what a service promises its clients, while everything dies under them."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from rich.table import Table

from load import command_line as options
from load.proving.history import PROMISES, History
from load.proving.machine import Machine
from load.proving.run import Broken, Setup
from load.report import console, write_json

__all__ = ["app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

# Hypothesis' first run of a seed is always the simplest that there is.
_RUNS_PER_SEED = 8
_LINES = 40
_MOST_SHOWN = 10


class _Stop(BaseException):
    """Ends Hypothesis' own loop, which would run what failed once more."""


@app.command()
def proof(
    *,
    operations: Annotated[int, typer.Option(min=1, help="Operations of clients.")] = 10_000,
    steps: Annotated[int, typer.Option(min=10, help="Steps of one run.")] = 200,
    clients: Annotated[int, typer.Option(min=1, help="Operations under way at once.")] = 8,
    kills: Annotated[bool, typer.Option(help="Kill replicas and Redis.")] = True,
    random_seed: Annotated[
        int | None, typer.Option("--seed", help="Chooses the steps. A new one each time.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="Write what happened in the run that failed here.")
    ] = None,
    json: options.JsonFile = None,
) -> None:
    """Have clients talk to a service whose replicas and Redis are killed, and check what they are told.

    The service runs in this process, with a model that computes next to nothing and a Redis of its own.
    Steps are drawn by a Hypothesis state machine, run after run. The first run in which a promise is
    broken ends the command with 1; it prints the seed that draws the same steps again.
    """
    first = options.fresh_seed(random_seed) % 2**32
    total = History()
    with tempfile.TemporaryDirectory(prefix="parley-proof-") as folder:
        os.environ["PARLEY_HOME"] = folder  # no service that runs here is meant
        for name in ("ray.serve", "asyncio", "load"):  # what they say is in the history
            logging.getLogger(name).propagate = False
            logging.getLogger(name).handlers = [logging.NullHandler()]
        machine = _machine(Setup(Path(folder), clients=clients, kills=kills), total, operations)
        batch = first
        try:
            while sum(total.operations.values()) < operations:
                machine.batch = batch
                _draw(machine, batch, steps)
                batch += 1
        except _Stop:
            pass
    _print(machine, total, clients)
    if json is not None:
        write_json(json, _report(machine, total, first))
    if total.violations:
        _explain(machine, batch, steps, history)
        raise typer.Exit(1)


class _Reporting(Machine):
    """Tells of each run, and stops at the first broken promise, or when there were enough operations.

    Attributes:
        wanted: operations.
        batch: the seed.
        last: what happened in the latest run.
    """

    wanted: ClassVar[int]
    batch: ClassVar[int]
    last: ClassVar[History]

    def teardown(self) -> None:
        """Come to the verdict, and tell how far it is."""
        super().teardown()
        own, total = self.run.history, self.total
        type(self).last = own
        typer.echo(
            f"seed {self.batch}, run {self.runs}: {sum(own.operations.values())} operations, "
            f"{sum(own.kills.values())} kills; {sum(total.operations.values())} so far, "
            f"{len(total.violations)} violations",
            err=True,
        )
        if total.violations or sum(total.operations.values()) >= self.wanted:
            raise _Stop

    def judge(self) -> None:
        """Come to the verdict; what is broken is in the history."""
        try:
            super().judge()
        except Broken:
            return


def _machine(setup: Setup, total: History, operations: int) -> type[_Reporting]:
    return type(
        "Proof", (_Reporting,), {"setup": setup, "total": total, "wanted": operations, "runs": 0}
    )


def _draw(machine: type[Machine], batch: int, steps: int) -> None:
    """Do some runs by the steps of one seed."""
    run_state_machine_as_test(
        seed(batch)(machine),
        settings=settings(
            max_examples=_RUNS_PER_SEED,
            stateful_step_count=steps,
            phases=(Phase.generate,),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _explain(machine: type[_Reporting], batch: int, steps: int, file: Path | None) -> None:
    """Print what was broken, what happened last, and how to have the same steps again."""
    last = machine.last
    for violation in last.violations[:_MOST_SHOWN]:
        console.print(f"broken: {violation.promise}\n  {violation.what}", markup=False)
    lines = last.lines
    first = next((n for n, line in enumerate(lines) if "VIOLATION" in line), len(lines))
    console.print("\n".join(["", "before:", *lines[max(0, first - _LINES) : first]]), markup=False)
    if file is not None:
        file.write_text("\n".join(lines) + "\n")
        console.print(f"\nall of it: {file}", markup=False)
    console.print(
        f"\nthe same steps again: python -m load.proof --seed {batch} --steps {steps}", markup=False
    )


def _print(machine: type[Machine], total: History, clients: int) -> None:
    console.print(_operations(machine, total, clients))
    killed = ", ".join(f"{count} {kind}" for kind, count in total.kills.items() if count)
    lost = ", ".join(f"{count} {kind}" for kind, count in sorted(total.lost_answers.items()))
    console.print(f"killed: {killed or 'nothing'}")
    console.print(f"answers of Redis that were lost behind what they were to: {lost or 'none'}\n")
    table = Table("promise", title_justify="left")
    table.add_column("looked at", justify="right")
    table.add_column("broken", justify="right")
    broken = Counter(violation.promise for violation in total.violations)
    for promise in PROMISES:
        table.add_row(promise, f"{total.checks[promise]:,}", str(broken[promise]))
    console.print(table)


def _operations(machine: type[Machine], total: History, clients: int) -> Table:
    table = Table(
        "operation",
        title=f"{sum(total.operations.values()):,} operations in {machine.runs} runs, "
        f"{clients} at once",
        title_justify="left",
    )
    table.add_column("times", justify="right")
    table.add_column("what came of it")
    for operation, count in sorted(total.operations.items()):
        outcomes = Counter(
            {
                outcome: times
                for (kind, outcome), times in total.outcomes.items()
                if kind == operation
            }
        )
        table.add_row(
            operation,
            f"{count:,}",
            ", ".join(f"{times} {outcome}" for outcome, times in outcomes.most_common()),
        )
    return table


def _report(machine: type[Machine], total: History, first: int) -> dict[str, object]:
    return {
        "seed": first,
        "runs": machine.runs,
        "operations": dict(total.operations),
        "outcomes": [
            {"operation": kind, "outcome": outcome, "times": times}
            for (kind, outcome), times in sorted(total.outcomes.items())
        ],
        "kills": dict(total.kills),
        "lost_answers": dict(total.lost_answers),
        "checks": dict(total.checks),
        "violations": [dataclasses.asdict(one) for one in total.violations],
    }


if __name__ == "__main__":
    options.run(app)
