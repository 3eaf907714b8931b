"""What is on disk of a running cluster: its state file, its lock, its token, and where Ray works.

`PARLEY_HOME/run` is readable by its owner only. Ray and HAProxy keep unix sockets, whose paths may
have about 100 characters, so they work in a short folder of their own under the temporary folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.cluster.processes import alive
from serve_app.errors import ConfigError
from serve_app.settings import GeneratorSettings, drain_flag

__all__ = ["RunFolder", "RunState"]

_LOCK_WAIT_S = 60.0
_POLL_S = 0.1
# HAProxy's admin socket is `<folder>/h/<56 characters of node id>/admin.sock.<pid>.tmp`.
_LONGEST_WORK_FOLDER = 24


class RunState(BaseModel):
    """One run, from the moment before its first process starts until its last has ended.

    Attributes:
        run_id: mark that every process of the run carries.
        phase: how far it is.
        pid: process that starts it, and in the foreground follows it.
        pid_started: when that process began, Unix seconds; process ids are used again.
        began: when the run began, Unix seconds.
        url: where HTTP is served.
        dashboard: URL of Ray's dashboard and REST interface.
        deploy_file: the file it was started from.
        model: name of the model that it serves, the first of them.
        further_models: names of the others.
        model_folder: where the first model lies; "" in the state of a run that didn't say.
        further_folders: where the others lie, and other pools' forms of all.
        own_redis: whether the Redis in PARLEY_HOME belongs to it.
        drain_timeout_s: how long running replies may take to end when it is told to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: Literal[1] = 1
    run_id: str
    phase: Literal["starting", "running", "stopping"]
    pid: int
    pid_started: float
    began: float
    url: str
    dashboard: str
    deploy_file: str
    model: str
    further_models: tuple[str, ...] = ()
    model_folder: str = ""
    further_folders: tuple[str, ...] = ()
    own_redis: bool
    drain_timeout_s: float = GeneratorSettings().drain_timeout_s

    @property
    def starter_alive(self) -> bool:
        """Whether the `parley up` that began it still runs."""
        return alive(self.pid, self.pid_started)


class RunFolder:
    """The files of the cluster that belongs to one PARLEY_HOME.

    Args:
        home: PARLEY_HOME.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._folder = home / "run"
        self._state_file = self._folder / "state.json"

    @property
    def token_file(self) -> Path:
        """Ray's token: who has it may run code in the cluster."""
        return self._folder / "ray-token"

    @property
    def logs(self) -> Path:
        """Link to the logs of the latest run."""
        return self.home / "logs"

    @property
    def metrics(self) -> Path:
        """Folder in which the run's processes write their metrics."""
        return self._folder / "metrics"

    @property
    def redis_trouble(self) -> Path:
        """File that says why the run's own Redis is away, as long as it is."""
        return self._folder / "redis-trouble"

    def start_log(self, name: str) -> Path:
        """Return the file for the output of something that is being started."""
        return self._folder / f"{name}.log"

    def create(self) -> None:
        """Make the folder, and the token if there is none."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.token_file.exists():
            self._write_private(self.token_file, secrets.token_hex(32))

    def token(self) -> str:
        """Return Ray's token.

        Raises:
            ConfigError: nothing has ever run here.
        """
        try:
            return self.token_file.read_text()
        except FileNotFoundError:
            msg = f"Nothing has run in {self.home} yet; start with `parley up`."
            raise ConfigError(msg) from None

    def state(self) -> RunState | None:
        """Return the state of the run, or None when there is none.

        Raises:
            ConfigError: the state file is not one of ours.
        """
        try:
            return RunState.model_validate_json(self._state_file.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            msg = f"{self._state_file} is not what Parley wrote; end what runs there and remove it."
            raise ConfigError(msg) from None

    def save(self, state: RunState) -> None:
        """Replace the state, whole or not at all."""
        self._write_private(self._state_file, state.model_dump_json(indent=2))

    def forget(self) -> None:
        """Remove the state: nothing runs any more."""
        self.redis_trouble.unlink(missing_ok=True)
        self._state_file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from starting and stopping at the same time.

        Raises:
            ConfigError: another command is at it and does not come to an end.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            deadline = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._refuse_to_wait(deadline)
                    time.sleep(_POLL_S)
            yield

    def work_folder(self) -> Path:
        """Make and return the short folder in which Ray and HAProxy work.

        Raises:
            ConfigError: somebody else has made it, or the temporary folder's path is too long.
        """
        name = f"parley-{hashlib.sha256(f'{os.getuid()}:{self.home}'.encode()).hexdigest()[:8]}"
        for parent in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - checked below
            folder = parent / name
            if len(str(folder)) > _LONGEST_WORK_FOLDER:
                continue
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
            # The temporary folder is everybody's: make sure that nobody was here first.
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                msg = f"{folder} belongs to somebody else; remove it or set TMPDIR to a folder of yours."
                raise ConfigError(msg)
            folder.chmod(0o700)
            return folder
        msg = (
            "No temporary folder with a path short enough for sockets; set TMPDIR to a shorter one."
        )
        raise ConfigError(msg)

    def clear_sessions(self, work_folder: Path) -> None:
        """Remove what earlier runs left in the work folder, except the logs of the latest one."""
        sessions = sorted((work_folder / "ray").glob("session_2*"))
        for session in sessions[:-1]:
            shutil.rmtree(session)
        shutil.rmtree(work_folder / "h", ignore_errors=True)
        drain_flag(self.home).unlink(missing_ok=True)
        # The metrics of processes that are gone; see serve_app.telemetry.process_metrics.
        shutil.rmtree(self.metrics, ignore_errors=True)

    def link_logs(self, work_folder: Path) -> None:
        """Point `PARLEY_HOME/logs` at the logs of the run that has just begun."""
        draft = self.home / f".logs.{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(work_folder / "ray" / "session_latest" / "logs")
        draft.replace(self.logs)

    def _refuse_to_wait(self, deadline: float) -> None:
        state = self.state()
        if state is not None and state.phase == "starting" and state.starter_alive:
            if state.pid == os.getpid():
                return
            msg = (
                f"`parley up` (process {state.pid}) is starting already; "
                "wait for it or end it with Ctrl-C."
            )
            raise ConfigError(msg)
        if time.monotonic() >= deadline:
            msg = (
                f"Another parley command holds {self._folder / 'lock'}; try again when it is done."
            )
            raise ConfigError(msg)

    def _write_private(self, file: Path, text: str) -> None:
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
