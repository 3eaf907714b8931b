"""The personas of a folder, read again when their files change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from serve_app.dialogue.personas.loading import PersonaFile, read_persona
from serve_app.errors import ConfigError, PersonaNotFound
from serve_app.settings import DialogueSettings, deploy_folder

__all__ = ["PersonaCatalog", "shipped_personas"]

_log = logging.getLogger(__name__)

_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is known of one file.

    Attributes:
        stamp: time of change in ns and size, when it was looked at.
        digest: of the content that was read.
        good: the last content that was in order.
        fault: what is wrong with the content, or None.
    """

    stamp: _Stamp
    digest: str
    good: PersonaFile | None
    fault: str | None


def shipped_personas() -> Path:
    """Return the folder of the personas that ship."""
    return deploy_folder() / "personas"


class PersonaCatalog:
    """Hands out the personas of a folder: `NAME.yaml` is the persona NAME.

    Files are looked at when somebody asks, at most every so often, and read only when their time of
    change or their size is another. A file that is broken leaves the last good persona in force and
    says so in the log, once per content. A file that is gone takes its persona along.

    Any thread may ask.

    Args:
        folder: where the files are.
        check_every_s: least seconds between two looks.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        folder: Path,
        *,
        check_every_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._check_every_s = check_every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._checked_at: float | None = None

    @classmethod
    def of(cls, settings: DialogueSettings) -> PersonaCatalog:
        """Return the catalog of the folder that the settings name, else of what ships."""
        return cls(settings.personas or shipped_personas())

    def get(self, name: str) -> PersonaFile:
        """Return a persona.

        Raises:
            PersonaNotFound: there is none of that name.
            ConfigError: its file is broken and never was in order.
        """
        with self._lock:
            self._refresh()
            entry = self._entries.get(name)
            names = ", ".join(self._entries) or "none"
        if entry is None:
            msg = f"No persona is named `{name}` in {self.folder}; there are: {names}."
            raise PersonaNotFound(msg)
        if entry.good is None:
            raise ConfigError(entry.fault or "")
        return entry.good

    def personas(self) -> list[PersonaFile]:
        """Return all that are in force, by name."""
        with self._lock:
            self._refresh()
            return [entry.good for entry in self._entries.values() if entry.good is not None]

    def faults(self) -> dict[str, str]:
        """Return what is wrong with files, by the name of the persona."""
        with self._lock:
            self._refresh()
            found = {name: entry.fault for name, entry in self._entries.items()}
        return {name: fault for name, fault in found.items() if fault is not None}

    def _refresh(self) -> None:
        now = self._clock()
        if self._checked_at is not None and now - self._checked_at < self._check_every_s:
            return
        self._checked_at = now
        files = {path.stem: path for path in sorted(self.folder.glob("*.yaml"))}
        for name in self._entries.keys() - files.keys():
            _log.warning("persona %s is gone: its file was removed", name)
        found: dict[str, _Entry] = {}
        for name, path in files.items():
            entry = self._look(path, self._entries.get(name))
            if entry is not None:
                found[name] = entry
        self._entries = found

    def _look(self, path: Path, known: _Entry | None) -> _Entry | None:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if known is not None and known.stamp == stamp:
                return known
            digest = blake2b(path.read_bytes(), digest_size=16).hexdigest()
        except FileNotFoundError:
            return None  # it went between two looks
        except OSError as error:
            fault = f"Can't read {path}: {error.strerror}."
            if known is None or known.fault != fault:
                _log.warning("persona %s stays as it was: %s", path.stem, fault)
            return _Entry((0, 0), "", known.good if known else None, fault)
        if known is not None and known.digest == digest:
            return replace(known, stamp=stamp)
        try:
            good = read_persona(path)
        except ConfigError as error:
            kept = known.good if known else None
            state = "stays as it was" if kept else "can't be used"
            _log.warning("persona %s %s: %s", path.stem, state, error.message)
            return _Entry(stamp, digest, kept, error.message)
        if known is not None:
            _log.info("persona %s was read again", path.stem)
        return _Entry(stamp, good.digest, good, None)
