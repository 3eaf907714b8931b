"""`parley ops …`: the service in Kubernetes, beside kubectl."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from serve_app.cli.console import ConsoleSteps, complain, say, show_table
from serve_app.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from serve_app.operations.cluster_api import ClusterApi
    from serve_app.operations.request_logs import LogLine, PodComplaint
    from serve_app.operations.revisions import Revision
    from serve_app.operations.status import ServiceStatus

__all__ = ["ops_app"]

ops_app = typer.Typer(
    help="Operate the service in Kubernetes: look, roll out, scale, drain, collect.",
    no_args_is_help=True,
)

_Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Where it runs; else the context's, else `parley`."),
]
_Context = Annotated[
    str | None, typer.Option(help="Context of the kubeconfig; else its current one.")
]
_Service = Annotated[str, typer.Option(help="Name of the RayService.")]
_RequestTimeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds that one request to the API server may take.")
]
_Timeout = Annotated[float, typer.Option(min=0.0, help="Seconds to wait at most.")]
_Wait = Annotated[bool, typer.Option(help="Wait until it is done.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_SERVICE = "parley"
_REQUEST_S = 10.0
_ROLLOUT_S = 2700.0
_DRAIN_S = 900.0
_FOLLOW_S = 600.0


@ops_app.command()
def status(
    *,
    events: Annotated[int, typer.Option(min=0, help="How many of the latest events.")] = 10,
    namespace: _Namespace = None,
    context: _Context = None,
    service: _Service = _SERVICE,
    request_timeout: _RequestTimeout = _REQUEST_S,
    as_json: _AsJson = False,
) -> None:
    """Show service, clusters, pods, GPUs, replicas, revision and events; the exit code is 0 if all is well."""
    with _cluster(namespace, context, request_timeout) as api:
        from serve_app.operations.status import look

        seen = look(api, service, events=events)
    if as_json:
        _print_json(dataclasses.asdict(seen))
    else:
        _show_status(seen)
    if not seen.ready or seen.problems:
        raise typer.Exit(1)


@ops_app.command()
def revisions(
    *,
    namespace: _Namespace = None,
    context: _Context = None,
    service: _Service = _SERVICE,
    request_timeout: _RequestTimeout = _REQUEST_S,
    as_json: _AsJson = False,
) -> None:
    """List what the service was told to be, the newest first: what `rollback` can go back to."""
    with _cluster(namespace, context, request_timeout) as api:
        from serve_app.operations.kinds import RAY_SERVICES
        from serve_app.operations.revisions import Revisions

        kept = Revisions(api, service)
        known, current = kept.history(), kept.current(api.get(RAY_SERVICES, service)["spec"])
    if as_json:
        _print_json([dataclasses.asdict(one) | {"current": one == current} for one in known])
        return
    if not known:
        say("No revision is recorded yet; `parley ops rollout` and `scale` record them.")
        return
    table = Table("revision", "recorded", "cause", "object")
    for one in known:
        mark = " (current)" if one == current else ""
        table.add_row(f"{one.number}{mark}", one.created, one.cause, one.name)
    show_table(table)


@ops_app.command()
def rollout(
    *,
    serve_config: Annotated[
        Path | None, typer.Option(help="Deploy file to run, such as k8s/base/serve.yaml.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="IMAGE for head and workers, or GROUP=IMAGE; the head's group is `head`."
        ),
    ] = None,
    wait: _Wait = True,
    timeout: _Timeout = _ROLLOUT_S,
    namespace: _Namespace = None,
    context: _Context = None,
    service: _Service = _SERVICE,
    request_timeout: _RequestTimeout = _REQUEST_S,
    as_json: _AsJson = False,
) -> None:
    """Change what runs, and follow the change until it is done.

    A changed deploy file alone is Serve's rolling update; a changed image brings up a second cluster, and
    traffic moves to it.
    """
    from serve_app.cluster.deploy_file import read_deploy_file

    if serve_config is None and not image:
        msg = "Name what to change: --serve-config FILE, --image IMAGE, or both."
        raise InvalidRequest(msg)
    text = read_deploy_file(serve_config).content.decode() if serve_config else None
    with _cluster(namespace, context, request_timeout) as api:
        from serve_app.operations.kinds import RAY_SERVICES
        from serve_app.operations.rollout import Change, apply_spec, change_spec

        found = api.get(RAY_SERVICES, service)
        images = dict(_image(one) for one in image or ())
        spec = change_spec(found["spec"], Change(text, images))
        parts = [f"deploy file {serve_config.name}"] if serve_config else []
        parts += [f"image {one}" for one in image or ()]
        revision = apply_spec(api, found, spec, f"rollout of {', '.join(parts)}")
        _follow(api, service, revision, wait=wait, timeout=timeout, as_json=as_json)


@ops_app.command()
def rollback(
    *,
    to: Annotated[
        int | None, typer.Option(min=1, help="Number of a revision; else the one before.")
    ] = None,
    wait: _Wait = True,
    timeout: _Timeout = _ROLLOUT_S,
    namespace: _Namespace = None,
    context: _Context = None,
    service: _Service = _SERVICE,
    request_timeout: _RequestTimeout = _REQUEST_S,
    as_json: _AsJson = False,
) -> None:
    """Go back to an earlier revision, and follow the change until it is done."""
    with _cluster(namespace, context, request_timeout) as api:
        from serve_app.operations.rollout import roll_back

        revision = roll_back(api, service, to)
        _follow(api, service, revision, wait=wait, timeout=timeout, as_json=as_json)


@ops_app.command()
def scale(
    *,
    workers: Annotated[
        list[str] | None, typer.Option(help="GROUP=MIN:MAX, pods of a worker group.")
    ] = None,
    replicas: Annotated[
        list[str] | None, typer.Option(help="DEPLOYMENT=MIN:MAX, replicas of a Serve deployment.")
    ] = None,
    wait: _Wait = True,
    timeout: _Timeout = _ROLLOUT_S,
    namespace: _Namespace = None,
    context: _Context = None,
    service: _Service = _SERVICE,
    request_timeout: _RequestTimeout = _REQUEST_S,
    as_json: _AsJson = False,
) -> None:
    """Set how few and how many workers and replicas there may be."""
    if not workers and not replicas:
        msg = "Name what to scale: --workers gpu=2:8, --replicas Generator=2:8, or both."
        raise InvalidRequest(msg)
    with _cluster(namespace, context, request_timeout) as api:
        from serve_app.errors import OperationError
        from serve_app.operations.kinds import DISRUPTION_BUDGETS, RAY_SERVICES
        from serve_app.operations.rollout import apply_spec
        from serve_app.operations.scaling import Bounds, budget_warnings, scale_spec

        def bounds(given: list[str] | None) -> dict[str, Bounds]:
            return {name: Bounds.parse(text) for name, text in map(_assignment, given or ())}

        found = api.get(RAY_SERVICES, service)
        spec = scale_spec(found["spec"], bounds(workers), bounds(replicas))
        try:
            warnings = budget_warnings(spec, api.find(DISRUPTION_BUDGETS))
        except OperationError as error:
            warnings = [f"Disruption budgets were not looked at. {error.message}"]
        for warning in warnings:
            complain(warning)
        cause = f"scale {', '.join([*(workers or ()), *(replicas or ())])}"
        revision = apply_spec(api, found, spec, cause)
        _follow(api, service, revision, wait=wait, timeout=timeout, as_json=as_json)


@ops_app.command()
def drain(
    node: Annotated[str, typer.Argument(help="Name of the node.")],
    *,
    timeout: _Timeout = _DRAIN_S,
    namespace: _Namespace = None,
    context: _Context = None,
    request_timeout: _RequestTimeout = _REQUEST_S,
    as_json: _AsJson = False,
) -> None:
    """Keep new pods off a node and evict Parley's, as far as disruption budgets allow."""
    with _cluster(namespace, context, request_timeout) as api, ConsoleSteps(aside=True) as steps:
        from serve_app.operations.draining import drain as drain_node

        steps.begin(f"Draining {node}")
        drained = drain_node(api, node, timeout_s=timeout, progress=steps.update)
    if as_json:
        _print_json(dataclasses.asdict(drained))
        return
    gone = ", ".join(drained.evicted) or "none was there"
    say(f"{node} takes no new pods, and Parley's have gone: {gone}.")
    say(f"When it is back: kubectl uncordon {node}")


@ops_app.command()
def logs(
    request: Annotated[str, typer.Argument(help="Id of a request, such as resp_… or chatcmpl-….")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to follow at most.")] = _FOLLOW_S,
    namespace: _Namespace = None,
    context: _Context = None,
    service: _Service = _SERVICE,
    request_timeout: _RequestTimeout = _REQUEST_S,
    as_json: _AsJson = False,
) -> None:
    """Print what the logs of all deployments say of one request."""
    with _cluster(namespace, context, request_timeout) as api:
        from serve_app.operations.request_logs import follow_request, request_lines

        if follow:
            try:
                for line in follow_request(api, service, request, seconds=timeout):
                    _show_line(line, as_json=as_json)
            except KeyboardInterrupt:
                raise typer.Exit(0) from None
            return
        lines, complaints = request_lines(api, service, request)
    found: list[LogLine | PodComplaint] = [*lines, *complaints]
    for one in found:
        _show_line(one, as_json=as_json)
    if not lines and not as_json:
        say(
            f"No log names {request}. Requests that go well leave no line unless enable_access_log is on; "
            "logs go with their pods."
        )
    if complaints:
        raise typer.Exit(1)


@ops_app.command()
def bundle(
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; named by the time if not.")
    ] = None,
    namespace: _Namespace = None,
    context: _Context = None,
    service: _Service = _SERVICE,
    request_timeout: _RequestTimeout = _REQUEST_S,
    as_json: _AsJson = False,
) -> None:
    """Collect objects, events, logs and versions into one file, secrets and personal data masked."""
    file = output or Path(time.strftime("parley-support-%Y%m%d-%H%M%S.tar.gz"))
    with _cluster(namespace, context, request_timeout) as api, ConsoleSteps(aside=True) as steps:
        from serve_app.operations.bundle import write_bundle

        steps.begin("Collecting")
        written = write_bundle(api, service, file, progress=steps.update)
    if as_json:
        _print_json(dataclasses.asdict(written) | {"file": str(written.file)})
        return
    for one in written.missing:
        say(f"Not collected: {one}", "yellow")
    say(
        f"{written.file} holds {len(written.members)} files. Look through it before you pass it on."
    )


@contextmanager
def _cluster(
    namespace: str | None, context: str | None, request_timeout: float
) -> Iterator[ClusterApi]:
    if importlib.util.find_spec("kubernetes") is None:
        msg = "`parley ops` needs the Kubernetes client: pip install 'parley[ops]'."
        raise ConfigError(msg)
    from serve_app.operations.cluster_api import ClusterApi

    with ClusterApi(namespace, context, request_timeout) as api:
        yield api


def _follow(
    api: ClusterApi,
    service: str,
    revision: Revision | None,
    *,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Say what was changed, and wait until it has come about."""
    from serve_app.operations.following import follow

    if revision is None:
        _done(service, None, "It is that already; nothing was changed.", as_json=as_json)
        return
    if not wait:
        said = f"Revision {revision.number} is on its way; `parley ops status` shows how far it is."
        _done(service, revision, said, as_json=as_json)
        return
    with ConsoleSteps(aside=True) as steps:
        steps.begin(f"{service}, revision {revision.number}")
        state = follow(api, service, timeout_s=timeout, progress=steps.update)
    where = f" on {state.active.name}" if state.active else ""
    _done(service, revision, f"Revision {revision.number} runs{where}.", as_json=as_json)


def _done(service: str, revision: Revision | None, said: str, *, as_json: bool) -> None:
    if as_json:
        number = revision.number if revision else None
        _print_json({"service": service, "revision": number, "message": said})
    else:
        say(said)


def _show_status(seen: ServiceStatus) -> None:
    table = Table("what", "name", "state", "replicas", "GPUs", "note")
    revision = f"revision {seen.revision}: {seen.cause}" if seen.revision else "unrecorded revision"
    gpus = sum(one.gpus for one in seen.groups)
    good, bad = "green", "yellow"
    table.add_row(
        "service",
        f"{seen.namespace}/{seen.service}",
        Text("ready" if seen.ready else "not ready", style=good if seen.ready else bad),
        "",
        str(gpus),
        f"{seen.doing}; {revision}",
    )
    for cluster in seen.clusters:
        share = f"{cluster.traffic_percent} % of the traffic" if cluster.traffic_percent else ""
        count = f"{cluster.workers}/{cluster.wanted}"
        table.add_row("cluster", cluster.name, cluster.role, count, cluster.gpus, share)
    for group in seen.groups:
        well = group.ready == group.pods
        table.add_row(
            "pods",
            f"{group.cluster} {group.name}",
            Text("ready" if well else "waiting", style=good if well else bad),
            f"{group.ready}/{group.pods}",
            str(group.gpus),
            f"{group.least} to {group.most}; {', '.join(group.images)}",
        )
    for one in seen.deployments:
        style = good if one.status == "HEALTHY" else bad
        message = one.message.splitlines()[-1] if one.message else ""
        state = Text(one.status, style=style)
        table.add_row("deployment", f"{one.cluster} {one.name}", state, one.running, "", message)
    for event in seen.events:
        style = bad if event.kind == "Warning" else ""
        count = f"×{event.count}" if event.count > 1 else ""
        note = f"{event.time}  {event.message}"
        table.add_row("event", event.object, Text(event.reason, style=style), count, "", note)
    show_table(table)
    for problem in seen.problems:
        say(problem, "yellow")


def _show_line(found: LogLine | PodComplaint, *, as_json: bool) -> None:
    from serve_app.operations.request_logs import PodComplaint

    if isinstance(found, PodComplaint):
        complain(f"The logs of {found.pod} can't be read: {found.error.message}")
    elif as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
    else:
        where = "/".join(part for part in (found.pod, found.deployment) if part)
        say("  ".join(part for part in (found.time, where, found.level, found.message) if part))


def _image(given: str) -> tuple[str, str]:
    from serve_app.operations.rollout import EVERY_GROUP

    group, sign, image = given.partition("=")
    return (group, image) if sign else (EVERY_GROUP, group)


def _assignment(given: str) -> tuple[str, str]:
    name, sign, value = given.partition("=")
    if not (name and sign and value):
        msg = f"{given!r} is no NAME=MIN:MAX, as in gpu=2:8."
        raise InvalidRequest(msg)
    return name, value


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
