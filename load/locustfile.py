"""Users that talk as people do: `locust -f load/locustfile.py --host http://127.0.0.1:8000 …`.

The classes on the command line choose the APIs (`ChatUser`, `CompletionUser`, `ConversationUser`),
`--personas` how they are talked to, `--shape` how many talk when, and the `--max-…` and `--min-…`
options what makes the exit code 1. See docs/load.md.
"""

from __future__ import annotations

from locust import events

from load.swarm.limits import report_limits
from load.swarm.options import add_options
from load.swarm.shapes import ChosenShape
from load.swarm.users import ChatUser, CompletionUser, ConversationUser

__all__ = ["ChatUser", "ChosenShape", "CompletionUser", "ConversationUser"]

events.init_command_line_parser.add_listener(add_options)
events.quitting.add_listener(report_limits)
