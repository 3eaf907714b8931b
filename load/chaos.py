"""`python -m load.chaos`: what clients see while the service's processes are killed one after the other."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import httpx
import psutil
import typer
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from load import chats
from load import command_line as options
from load.chaos_clients import Kept, Talker
from load.http_client import Address
from load.own_cluster import OwnCluster, own_cluster
from load.processor_time import kind_of
from load.report import console, write_json
from load.workload import Workload
from serve_app.cluster.deploy_file import APPLICATION
from serve_app.cluster.haproxy_keeper import STANDBY
from serve_app.cluster.run_folder import RunFolder
from serve_app.cluster.serve_api import ServeApi
from serve_app.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

# By what a process is called; the first row is what the others compare with.
_NOBODY = "nobody"
VICTIMS = ("Generator", "Tokenizer", "Dialogue", "Ingress", "haproxy", "redis-server")
# Those whose death clients must not notice but for a pause.
_UNNOTICED = frozenset({_NOBODY, "Generator", "Tokenizer", "Dialogue"})
# And those through which connections go. A connection that breaks before the answer begins is told by
# the proxy in front, if it lives: 503, with the code of a service that has no room.
_CONNECTIONS = frozenset({"Ingress", "haproxy"})
_RECONNECTS = frozenset({"cut", "connect", "503 overloaded"})

_MOVES = "parley_stream_moves_total"

_LEAST_S = 10.0
_MOST_S = 180.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Episode:
    """One kill and what came of it.

    Attributes:
        victim: kind of process that was killed.
        killed: how many of them.
        seconds: how long it was looked at.
        stateless: errors of clients that send their history along, by kind.
        stored: errors of clients whose conversations are stored, by kind.
        moved: streams that went on with another generator.
        pause_s: longest time that a conversation had no new text.
        whole_after_s: seconds until as many processes served as before; None if they never did.
    """

    victim: str
    killed: int
    seconds: float
    stateless: dict[str, int]
    stored: dict[str, int]
    moved: int
    pause_s: float
    whole_after_s: float | None

    @property
    def as_hoped(self) -> bool:
        """Whether clients saw no more of it than they should have to."""
        if self.whole_after_s is None:
            return False
        if self.victim in _UNNOTICED:
            return not (self.stateless or self.stored)
        if self.victim in _CONNECTIONS:
            return (self.stateless.keys() | self.stored.keys()) <= _RECONNECTS
        return not self.stateless


@app.command()
def chaos(
    *,
    streams: Annotated[int, typer.Option(min=2, help="Conversations held at once.")] = 32,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas of each deployment.")] = 2,
    victims: Annotated[str, typer.Option(help="Kinds of processes to kill.")] = ",".join(VICTIMS),
    output_tokens: options.OutputTokens = 48,
    seed: options.Seed = None,
    json: options.JsonFile = None,
) -> None:
    """Kill one process of each kind, with -9, under streaming conversations.

    Starts a cluster of its own. Half of the conversations are stored by the service, half send their
    history along. A question that fails is put again after a second, and counts as an error each
    time. At the end the stored conversations are read and compared with what clients were told.
    Exits with 1 where a client saw more than it should have to.
    """
    kinds = _kinds(victims)
    workload = Workload(turns=3, output_tokens=output_tokens, seed=options.fresh_seed(seed))
    typer.echo(f"starting a cluster with {replicas} replicas of each deployment …", err=True)
    with own_cluster({}, replicas=replicas) as cluster:
        episodes, kept = uvloop.run(_talk_and_kill(cluster, workload, streams, kinds))
    console.print(_table(streams, replicas, episodes))
    console.print(
        f"{kept.turns} turns were reported as stored; of these {kept.lost} are lost, "
        f"and {kept.twice} are stored twice"
    )
    if json is not None:
        write_json(
            json,
            {
                "workload": dataclasses.asdict(workload),
                "streams": streams,
                "replicas": replicas,
                "episodes": [dataclasses.asdict(one) for one in episodes],
                "kept": dataclasses.asdict(kept),
            },
        )
    if kept.lost or kept.twice or not all(one.as_hoped for one in episodes):
        raise typer.Exit(1)


async def _talk_and_kill(
    cluster: OwnCluster, workload: Workload, streams: int, kinds: Sequence[str]
) -> tuple[list[Episode], Kept]:
    address = Address.of(cluster.url)
    model = await chats.first_model(address, None)
    talkers = [
        Talker(address, model, workload, number=number, stored=number % 2 == 0)
        for number in range(streams)
    ]
    talking = [asyncio.create_task(one.talk()) for one in talkers]
    try:
        episodes = []
        for kind in (_NOBODY, *kinds):
            typer.echo(f"{kind} …", err=True)
            episode = await _episode(cluster, talkers, kind)
            typer.echo(
                f"  errors, stateless: {_listed(episode.stateless)}; stored: "
                f"{_listed(episode.stored)}; longest pause {episode.pause_s:.1f} s",
                err=True,
            )
            episodes.append(episode)
        for task in talking:
            if task.done():
                task.result()  # which is why it has ended
    finally:
        for task in talking:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*talking)
    kept = [await one.kept() for one in talkers]
    return episodes, Kept(
        sum(one.turns for one in kept),
        sum(one.lost for one in kept),
        sum(one.twice for one in kept),
    )


async def _episode(cluster: OwnCluster, talkers: Sequence[Talker], kind: str) -> Episode:
    """Kill a process of a kind while all talk, and look on until all is well again."""
    await _all_answered(talkers, time.perf_counter(), _MOST_S)
    doomed = [] if kind == _NOBODY else await asyncio.to_thread(_processes, cluster, kind)
    before, moved_before = len(doomed), await asyncio.to_thread(_moved, cluster)
    if kind != "haproxy":  # one that is being replaced ends what goes through it: kill both
        doomed = doomed[:1]
    killed_at = time.perf_counter()
    for process in doomed:
        process.kill()
    gone = {process.pid for process in doomed}
    whole_after_s = None
    while (now := time.perf_counter()) - killed_at < _MOST_S:
        await asyncio.sleep(_LOOK_S)
        if whole_after_s is None:
            if await asyncio.to_thread(_whole, cluster, kind, gone, before):
                whole_after_s = time.perf_counter() - killed_at
        elif now - killed_at >= _LEAST_S and _answered(talkers, killed_at + whole_after_s):
            break
    until = time.perf_counter()

    def errors(*, stored: bool) -> dict[str, int]:
        return dict(
            Counter(
                error
                for talker in talkers
                if talker.stored == stored
                for at, error in talker.seen.errors
                if killed_at <= at <= until
            )
        )

    return Episode(
        victim=kind,
        killed=len(doomed),
        seconds=until - killed_at,
        stateless=errors(stored=False),
        stored=errors(stored=True),
        moved=await asyncio.to_thread(_moved, cluster) - moved_before,
        pause_s=max(talker.seen.longest_pause(killed_at, until) for talker in talkers),
        whole_after_s=whole_after_s,
    )


async def _all_answered(talkers: Sequence[Talker], since: float, within_s: float) -> None:
    deadline = time.perf_counter() + within_s
    while not _answered(talkers, since):
        if time.perf_counter() > deadline:
            msg = f"Not every conversation got an answer within {within_s:g} s."
            raise ConfigError(msg)
        await asyncio.sleep(_LOOK_S)


def _answered(talkers: Sequence[Talker], since: float) -> bool:
    """Say whether every client has put a question since then that was answered in full."""
    return all(talker.seen.whole and talker.seen.whole[-1] >= since for talker in talkers)


def _moved(cluster: OwnCluster) -> int:
    """Return how many streams have gone from one generator to another, since the start."""
    answer = httpx.get(f"{cluster.url.removesuffix('/v1')}/metrics", trust_env=False)
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == _MOVES
        )
    )


def _processes(cluster: OwnCluster, kind: str) -> list[psutil.Process]:
    found = []
    for process in cluster.processes():
        with suppress(psutil.NoSuchProcess):
            if kind_of(process.cmdline()) == kind:
                found.append(process)
    if not found:
        msg = f"No process is called {kind!r}."
        raise ConfigError(msg)
    return sorted(found, key=lambda process: process.pid)


def _whole(cluster: OwnCluster, kind: str, gone: set[int], before: int) -> bool:
    """Say whether all replicas serve, and what was killed has been replaced."""
    folder = RunFolder(cluster.home)
    state = folder.state()
    if state is None:
        return False
    try:
        with ServeApi(state.dashboard, folder.token()) as api:
            deployments = api.details()["applications"][APPLICATION]["deployments"].values()
        if kind == _NOBODY:
            return True
        living = {
            process.pid
            for process in _processes(cluster, kind)
            if STANDBY not in " ".join(process.cmdline())
        }
    except (ConfigError, KeyError, psutil.NoSuchProcess):
        return False
    replicas = [one for deployment in deployments for one in deployment["replicas"]]
    return (
        all(
            sum(one["state"] == "RUNNING" for one in deployment["replicas"])
            == deployment["target_num_replicas"]
            for deployment in deployments
        )
        and gone.isdisjoint(one["pid"] for one in replicas)
        and gone.isdisjoint(living)
        and (len(living) >= before or (kind == "haproxy" and bool(living)))
    )


def _kinds(victims: str) -> list[str]:
    kinds = [word.strip() for word in victims.split(",") if word.strip()]
    unknown = [kind for kind in kinds if kind not in VICTIMS]
    if unknown or not kinds:
        msg = f"{victims!r} names no processes; take some of {','.join(VICTIMS)}."
        raise typer.BadParameter(msg)
    return kinds


def _table(streams: int, replicas: int, episodes: Sequence[Episode]) -> Table:
    table = Table(
        "kill -9",
        title=f"{streams} conversations, {replicas} replicas of each deployment",
        title_justify="left",
    )
    for column in ("errors, stateless", "errors, stored"):
        table.add_column(column)
    for column in ("moved", "longest pause, s", "replaced after, s"):
        table.add_column(column, justify="right")
    for one in episodes:
        replaced = "never" if one.whole_after_s is None else f"{one.whole_after_s:.1f}"
        table.add_row(
            one.victim,
            _listed(one.stateless),
            _listed(one.stored),
            str(one.moved),
            f"{one.pause_s:.1f}",
            "" if one.victim == _NOBODY else replaced,
        )
    return table


def _listed(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items())) or "none"


if __name__ == "__main__":
    options.run(app)
