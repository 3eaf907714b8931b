"""`parley up` and `parley down`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.cli.console import ConsoleSteps, say
from serve_app.cli.interrupts import Interrupts
from serve_app.settings import PrecisionName, parley_home

if TYPE_CHECKING:
    from serve_app.cluster.run_folder import RunState

__all__ = ["down", "up"]

_SIGNAL_EXIT = 128  # a shell's convention for "ended by a signal"


def up(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 needs an API key.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Generator replicas, at least.")
    ] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Precision of the weights.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="`bundled`, a .gguf file, a folder of safetensors, or org/name."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Deploy file; deploy/local.yaml if none is named.")
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="redis:// or rediss:// URL; with a password rather PARLEY_REDIS_URL."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return as soon as it serves.")
    ] = False,
) -> None:
    """Prepare the model, start everything, and serve until Ctrl-C."""
    from serve_app.cluster.deploy_file import Overrides, load_deployment
    from serve_app.cluster.guard import Guard
    from serve_app.cluster.ray_starter import RayStarter

    began = time.monotonic()
    overrides = Overrides(
        host=host,
        port=port,
        replicas=replicas,
        model=model,
        precision=precision,
        redis_url=redis_url,
    )
    home = parley_home()
    with Interrupts() as interrupts, Guard(home) as guard:
        try:
            with RayStarter(guard.run_id) as starter, ConsoleSteps() as steps:
                # Imported only now: it takes a while, in which Ray is imported as well.
                from serve_app.cluster.launch import start

                deployment = load_deployment(config, overrides)
                state = start(home, deployment, guard, starter, steps)
        except KeyboardInterrupt:
            say("Interrupted before it was ready; nothing is left running.")
            raise typer.Exit(_SIGNAL_EXIT + (interrupts.received or 2)) from None
        _tell(state, time.monotonic() - began)
        if detach:
            from serve_app.cluster.watch import watch_in_background

            watch_in_background(home, state)
            say("It goes on in the background; `parley down` ends it.")
            return
        say("Ctrl-C ends it.")
        _serve(home, state, interrupts)


def down(
    *,
    now: Annotated[
        bool, typer.Option("--now", help="Don't wait for running replies to end.")
    ] = False,
) -> None:
    """End everything that `parley up` has started."""
    from serve_app.cluster.teardown import stop

    home = parley_home()
    with ConsoleSteps() as steps:
        ended = stop(home, steps, drain=not now)
    if ended is None:
        say(f"Nothing runs in {home}.")
    else:
        say(f"Ended {ended} processes; conversations and models stay in {home}.")


def _serve(home: Path, state: RunState, interrupts: Interrupts) -> None:
    from serve_app.cluster.launch import follow
    from serve_app.cluster.teardown import stop

    drain = True
    try:
        with ConsoleSteps() as steps:
            follow(home, state, steps)
        say("Ended by another command.")
        return
    except KeyboardInterrupt:
        say("Ending; Ctrl-C again doesn't wait for running replies.")
    except BaseException:
        with ConsoleSteps() as steps:
            stop(home, steps, drain=False)
        raise
    interrupts.arm()
    while True:
        try:
            with ConsoleSteps() as steps:
                stop(home, steps, drain=drain)
        except KeyboardInterrupt:
            drain = False
        else:
            return


def _tell(state: RunState, seconds: float) -> None:
    *others, last = state.model, *state.further_models
    what = f"{', '.join(others)} and {last} are" if others else f"{last} is"
    say(f"\n{what} served at {state.url} (ready after {seconds:.1f} s).", "bold")
    say("Talk to it: parley chat")
    say(
        f"or: curl {state.url}/v1/chat/completions -H 'content-type: application/json' "
        f'-d \'{{"model": "{state.model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\''
    )
