"""A disk without room: a sentence, an exit code, nothing half-written, nothing left running.

A limit on the size of files stands for the full disk; Parley treats the errors of both alike.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from serve_app.cli import console
from serve_app.cluster import launch
from serve_app.cluster.ports import free_ports
from serve_app.cluster.run_folder import RunFolder
from serve_app.errors import ConfigError
from serve_app.models.store import PreparedModel
from serve_app.state.sealing import KeyFile

KEY_FILE = 120  # bytes of a file with one key


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    # It lies elsewhere: a test run that was killed may have left something there.
    shutil.rmtree(RunFolder(folder).work_folder())
    yield folder
    RunFolder(folder).work_folder().rmdir()  # which must be empty


@pytest.fixture
def port() -> str:
    return str(free_ports(1)[0])


def files(home: Path) -> dict[str, int]:
    """Return what the commands have written, with sizes; prepared models that are linked to aside."""
    return {
        str(path.relative_to(home)): path.stat().st_size
        for path in home.rglob("*")
        if path.is_file()
    }


def processes_of(home: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("PARLEY_HOME") == str(home)
    ]


def test_preparing_says_what_it_takes_and_leaves_nothing(parley, home: Path) -> None:
    failed = parley("model", "prepare", largest_file=100_000)
    assert failed.returncode == 1
    assert "Preparing SmolLM2-135M-Instruct in int8 takes about" in failed.stderr
    assert "or set PARLEY_HOME to a folder on another disk." in failed.stderr
    assert files(home) == {"models/.lock": 0}


def test_up_says_what_the_model_takes_and_leaves_no_run(parley, home: Path, port: str) -> None:
    failed = parley("up", "--port", port, largest_file=100_000)
    assert failed.returncode == 1
    assert "Preparing SmolLM2-135M-Instruct in int8 takes about" in failed.stderr
    # Token and key are whole, and the next `up` uses them.
    left = {"encryption.json": KEY_FILE, "models/.lock": 0, "run/lock": 0, "run/ray-token": 64}
    assert files(home) == left
    assert len(KeyFile(home / "encryption.json").read()) == 1
    assert processes_of(home) == []


@pytest.mark.parametrize(
    ("room", "left"),
    [
        (10, {"run/lock": 0}),  # not even the token can be written
        (100, {"run/lock": 0, "run/ray-token": 64}),  # nor can the key
        # The model is prepared; the state can't be written.
        (KEY_FILE, {"encryption.json": KEY_FILE, "run/lock": 0, "run/ray-token": 64}),
    ],
)
def test_up_on_a_full_disk_is_a_sentence_and_leaves_no_run(
    parley, home: Path, port: str, bundled_int8: PreparedModel, room: int, left: dict[str, int]
) -> None:
    (home / "models").symlink_to(bundled_int8.path.parent)
    failed = parley("up", "--port", port, largest_file=room)
    assert failed.returncode == 1
    assert failed.stderr == (
        "The disk is full: a file could not be written. Free some space and try again.\n"
    )
    assert files(home) == left
    assert processes_of(home) == []


def test_a_note_that_finds_no_room_for_its_output_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(console, "_stdout", Console(file=Full()))
    with pytest.raises(OSError, match="No space left"):
        console.say("What was asked for is not lost in silence.")
    console.ConsoleSteps().note("Redis is gone.")


def test_up_wants_room_before_it_starts_redis_and_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1015 << 20, 9 << 20))
    with pytest.raises(ConfigError, match=r"has 9 MB left; .* need 256 MB"):
        launch._require_room(tmp_path)
