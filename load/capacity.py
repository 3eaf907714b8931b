"""`python -m load.capacity`: how many replicas, and GPUs, a number of users needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure
from rich.table import Table

from load import command_line as options
from load.queueing import least_servers, wait_beyond
from load.report import console, write_json
from load.step_times import StepTimes
from serve_app.errors import ConfigError

__all__ = ["Demand", "Need", "ReplicaCapacity", "app", "need"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

# Of requests, whose wait is within the target.
_IN_TIME = 0.95

_FORMULA = """\
step(n)  = itself + stream · n                          seconds of a step that n streams share
turn(n)  = n · prompt_token · new + output · step(n)    seconds of a turn, n at once
gap(n)   = turn(n) / output                             seconds between its tokens
n        = most streams, within slots, whose gap(n) is within the target
X        = n / turn(n)                                  turns per second of one replica
λ        = users · turns per hour / 3600 · peak         turns per second that arrive
a        = λ · turn(n)                                  turns in progress, by Little's law
replicas = the least r for which λ / (r · X) is within the utilisation, and
           P(W > t) = C(r · n, a) · exp(-(r · n - a) · t / turn(n)) is within 5 %, by Erlang's C,
           where t is what the TTFT leaves beside computing the turn's own prompt; and the spare"""


@dataclass(frozen=True, slots=True)
class Demand:
    """What users do, and what they may expect.

    Attributes:
        turns_per_hour: questions of one user in an hour.
        peak: how many times the average the busiest hour is.
        new_tokens: prompt tokens of a question that no prefix cache has.
        output_tokens: tokens of a reply.
        inter_token_s: most seconds between tokens, on average.
        ttft_s: most seconds to a first token, for 95 % of the questions.
    """

    turns_per_hour: float
    peak: float
    new_tokens: float
    output_tokens: float
    inter_token_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """What one replica carries.

    Attributes:
        streams: streams at once.
        turn_s: seconds of a turn among so many.
        turns_per_s: turns per second.
        tokens_per_s: output tokens per second.
        prompt_s: seconds that a turn's own prompt takes.
    """

    streams: int
    turn_s: float
    turns_per_s: float
    tokens_per_s: float
    prompt_s: float

    @classmethod
    def of(cls, times: StepTimes, demand: Demand, slots: int) -> ReplicaCapacity:
        """Find the most streams whose tokens come in time.

        Raises:
            ConfigError: even a stream alone is slower than what is asked for.
        """
        prompt_s = times.prompt_token * demand.new_tokens

        def turn_s(streams: int) -> float:
            return streams * prompt_s + demand.output_tokens * times.step(streams)

        def gap_s(streams: int) -> float:
            return turn_s(streams) / demand.output_tokens

        if gap_s(1) > demand.inter_token_s:
            msg = (
                f"A stream alone has {gap_s(1) * 1e3:.0f} ms between its tokens, more than the "
                f"{demand.inter_token_s * 1e3:.0f} asked for: raise --inter-token-ms, or take faster "
                "hardware or a smaller model."
            )
            raise ConfigError(msg)
        streams = max(n for n in range(1, slots + 1) if gap_s(n) <= demand.inter_token_s)
        turns_per_s = streams / turn_s(streams)
        return cls(
            streams=streams,
            turn_s=turn_s(streams),
            turns_per_s=turns_per_s,
            tokens_per_s=turns_per_s * demand.output_tokens,
            prompt_s=prompt_s + times.step(streams),
        )


@dataclass(frozen=True, slots=True)
class Need:
    """What a number of users needs.

    Attributes:
        users: how many.
        turns_per_s: turns that arrive per second, at the peak.
        in_progress: turns in progress then.
        replicas: replicas, the spare ones included.
        gpus: GPUs of these.
        utilisation: share of what the replicas without the spare ones could carry.
        late: share of the turns that wait for longer than the target leaves.
    """

    users: int
    turns_per_s: float
    in_progress: float
    replicas: int
    gpus: float
    utilisation: float
    late: float


def need(
    users: int,
    demand: Demand,
    replica: ReplicaCapacity,
    *,
    utilisation: float,
    spare: int,
    gpus: float,
) -> Need:
    """Return what so many users need; the formula is the one that the command prints.

    Args:
        users: how many.
        demand: what each of them does.
        replica: what one replica carries.
        utilisation: most of what replicas can carry that they are to carry, in (0, 1).
        spare: replicas beyond that, for one that dies or is replaced.
        gpus: GPUs of one replica; a part of one where replicas share it.

    Raises:
        ConfigError: the prompt alone takes longer than the TTFT asked for.
    """
    wait_s = demand.ttft_s - replica.prompt_s
    if wait_s <= 0:
        msg = (
            f"Computing a prompt takes {replica.prompt_s:.2f} s, and --ttft-s is {demand.ttft_s:g}: raise "
            "it, or have fewer new tokens (--cached)."
        )
        raise ConfigError(msg)
    arriving = users * demand.turns_per_hour / 3600.0 * demand.peak
    in_progress = arriving * replica.turn_s
    in_time = least_servers(
        in_progress,
        wait_s,
        replica.turn_s,
        beyond=1.0 - _IN_TIME,
        at_a_time=replica.streams,
    )
    least = math.ceil(arriving / (replica.turns_per_s * utilisation))
    replicas = max(in_time // replica.streams, least, 1)
    return Need(
        users=users,
        turns_per_s=arriving,
        in_progress=in_progress,
        replicas=replicas + spare,
        gpus=(replicas + spare) * gpus,
        utilisation=arriving / (replicas * replica.turns_per_s),
        late=wait_beyond(replicas * replica.streams, in_progress, wait_s, replica.turn_s),
    )


@app.command()
def capacity(
    *,
    measured: Annotated[
        Path | None, typer.Option(help="What `python -m load.engine --json` has written.")
    ] = None,
    step_ms: Annotated[
        float | None, typer.Option(min=0, help="Or: milliseconds of a step by itself,")
    ] = None,
    stream_ms: Annotated[
        float | None, typer.Option(min=0, help="what each stream adds to it,")
    ] = None,
    prompt_token_ms: Annotated[
        float | None, typer.Option(min=0, help="and what each prompt token adds.")
    ] = None,
    users: Annotated[str, typer.Option(help="How many, as in 1000,1000000.")] = (
        "100,1000,10000,100000,1000000"
    ),
    turns_per_hour: Annotated[
        float, typer.Option(min=0.001, help="Questions of one user in an hour.")
    ] = 6.0,
    peak: Annotated[
        float, typer.Option(min=1, help="How many times the average the busiest hour is.")
    ] = 3.0,
    prompt_tokens: Annotated[float, typer.Option(min=1, help="Tokens of a prompt.")] = 400.0,
    cached: Annotated[
        float, typer.Option(min=0, max=1, help="Share of them that the prefix cache has.")
    ] = 0.8,
    output_tokens: Annotated[float, typer.Option(min=1, help="Tokens of a reply.")] = 128.0,
    slots: Annotated[int, typer.Option(min=1, help="Slots of a replica.")] = 32,
    inter_token_ms: Annotated[
        float, typer.Option(min=1, help="Most milliseconds between tokens.")
    ] = 150.0,
    ttft_s: Annotated[
        float, typer.Option(min=0.01, help="Most seconds to a first token, for 95 %.")
    ] = 2.0,
    utilisation: Annotated[
        float, typer.Option(min=0.05, max=0.99, help="How full replicas may be, at most.")
    ] = 0.8,
    spare: Annotated[int, typer.Option(min=0, help="Replicas beyond that.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of one replica.")] = 1.0,
    plot: Annotated[Path | None, typer.Option(help="Draw it here.")] = None,
    json: options.JsonFile = None,
) -> None:
    """Work out replicas and GPUs from what an engine's steps take, and show the formula.

    What is measured is one machine's; figures for another one need its own `load.engine --json`.
    """
    times = _times(measured, step_ms, stream_ms, prompt_token_ms)
    demand = Demand(
        turns_per_hour=turns_per_hour,
        peak=peak,
        new_tokens=prompt_tokens * (1.0 - cached),
        output_tokens=output_tokens,
        inter_token_s=inter_token_ms / 1e3,
        ttft_s=ttft_s,
    )
    replica = ReplicaCapacity.of(times, demand, slots)
    needs = [
        need(count, demand, replica, utilisation=utilisation, spare=spare, gpus=gpus)
        for count in options.numbers(users)
    ]
    console.print(_FORMULA, "")
    console.print(_replica_table(times, replica), _needs_table(needs))
    if plot is not None:
        _save_plot(plot, needs, replica, spare)
    if json is not None:
        write_json(
            json,
            {
                "step_times_s": dataclasses.asdict(times),
                "demand": dataclasses.asdict(demand),
                "replica": dataclasses.asdict(replica),
                "utilisation": utilisation,
                "spare": spare,
                "needs": [dataclasses.asdict(one) for one in needs],
            },
        )


def _times(
    measured: Path | None, step_ms: float | None, stream_ms: float | None, token_ms: float | None
) -> StepTimes:
    if measured is not None and step_ms is stream_ms is token_ms is None:
        return StepTimes.read(measured)
    if measured is None and step_ms is not None and stream_ms is not None and token_ms is not None:
        return StepTimes(step_ms / 1e3, stream_ms / 1e3, token_ms / 1e3)
    msg = (
        "Say what steps take, in one way: --measured with the file of `python -m load.engine "
        "--concurrency 1,8,32 --json FILE`, or --step-ms, --stream-ms and --prompt-token-ms."
    )
    raise ConfigError(msg)


def _replica_table(times: StepTimes, replica: ReplicaCapacity) -> Table:
    table = Table("one replica", title_justify="left")
    table.add_column("", justify="right")
    table.add_row("a step by itself, ms", f"{times.itself * 1e3:.3f}")
    table.add_row("each stream in it, ms", f"{times.stream * 1e3:.3f}")
    table.add_row("each prompt token in it, ms", f"{times.prompt_token * 1e3:.3f}")
    table.add_row("streams at once, n", f"{replica.streams}")
    table.add_row("a turn, s", f"{replica.turn_s:.2f}")
    table.add_row("turns/s, X", f"{replica.turns_per_s:.2f}")
    table.add_row("output tok/s", f"{replica.tokens_per_s:.0f}")
    return table


def _needs_table(needs: Sequence[Need]) -> Table:
    table = Table("users", title="at the peak", title_justify="left")
    headings = ("turns/s", "in progress", "replicas", "GPUs", "utilisation", "wait too long")
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in needs:
        table.add_row(
            f"{one.users:,}",
            f"{one.turns_per_s:,.2f}",
            f"{one.in_progress:,.1f}",
            f"{one.replicas:,}",
            f"{one.gpus:,g}",
            f"{one.utilisation:.0%}",
            f"{one.late:.2%}",
        )
    return table


def _save_plot(path: Path, needs: Sequence[Need], replica: ReplicaCapacity, spare: int) -> None:
    """Draw the replicas over the users, beside what the work alone would need."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    users = [one.users for one in needs]
    work = [max(one.turns_per_s / replica.turns_per_s, 1.0) for one in needs]
    axes.loglog(
        users, [one.replicas for one in needs], "o-", label=f"needed, {spare} of them spare"
    )
    axes.loglog(users, work, "--", label="without waiting, headroom and spare")
    axes.set_xlabel("users")
    axes.set_ylabel("replicas")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    options.run(app)
