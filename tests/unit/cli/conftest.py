"""The command line as a user runs it: a process and a home of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_server import Server

from serve_app.cli.chat_client import ChatClient
from serve_app.cli.chat_session import ChatSession

REPOSITORY = Path(__file__).parents[3]

Parley = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without anybody's settings, and with a home that doesn't exist yet."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")}
    return {
        **clean,
        "PARLEY_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(REPOSITORY),
        "COLUMNS": "200",
    }


@pytest.fixture
def parley(tmp_path: Path, environment: dict[str, str]) -> Parley:
    """Run `parley`; `said` is its input, `largest_file` stands for a disk with no more room."""

    def run(
        *arguments: str, said: str = "", largest_file: int | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        return subprocess.run(
            [sys.executable, "-m", "serve_app.cli", *arguments],
            env=environment | variables,
            input=said,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
            cwd=tmp_path,
            check=False,
            preexec_fn=limit,
        )

    return run


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def session(server: Server) -> Iterator[ChatSession]:
    with ChatClient(server.url) as client:
        yield ChatSession(client)
