"""What this load adds to Locust's command line."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from load.swarm.limits import LIMITS
from load.swarm.personas import PERSONAS, chosen_personas
from load.swarm.shapes import SHAPES
from serve_app.errors import ConfigError

__all__ = ["add_options"]


def add_options(parser: ArgumentParser, **_: Any) -> None:
    """Add the options; Locust calls this before it reads the command line."""
    group = parser.add_argument_group("Parley's load")
    group.add_argument(
        "--personas",
        type=_personas,
        default=",".join(PERSONAS),
        help=f"Who talks, with commas: {', '.join(PERSONAS)}; name one twice for twice as many.",
    )
    group.add_argument(
        "--shape",
        choices=list(SHAPES),
        default="constant",
        help="How many of -u talk when, over the time of -t.",
    )
    group.add_argument(
        "--think", type=float, default=1.0, help="Factor on the time between turns; 0 for none."
    )
    group.add_argument("--model", default=None, help="The model's name; the first listed if none.")
    group.add_argument(
        "--api-key-env", default=None, help="Environment variable that holds the API key."
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        help="Make every reply as long as it may be, on servers that can.",
    )
    for name, limit in LIMITS.items():
        group.add_argument(f"--{name}", type=float, default=None, help=limit.help)


def _personas(names: str) -> str:
    """Refuse unknown names before anybody talks; what is passed on stays text, as workers get it."""
    try:
        chosen_personas(names)
    except ConfigError as error:
        raise ArgumentTypeError(error.message) from error
    return names
