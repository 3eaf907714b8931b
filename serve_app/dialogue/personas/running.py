"""Personas as a running service uses them: read again when their files change, ready to understand."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.nlu.understander import Understander
from serve_app.dialogue.personas.catalog import PersonaCatalog
from serve_app.dialogue.personas.schema import Persona
from serve_app.dialogue.personas.understanding import understander_of
from serve_app.errors import ConfigError, PersonaNotFound

__all__ = ["RunningPersona", "RunningPersonas"]

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class RunningPersona:
    """A persona, and what understands its turns.

    Attributes:
        persona: what its file says.
        understander: understands turns.
    """

    persona: Persona
    understander: Understander


class RunningPersonas:
    """Hands out personas ready for use. Any thread may ask.

    A file that has changed counts from the next turn that begins two seconds later; a turn that is
    under way ends as it began.

    Args:
        catalog: of the files.
        store: where fitted intents are kept.
    """

    def __init__(self, catalog: PersonaCatalog, store: IntentStore) -> None:
        self._catalog = catalog
        self._store = store
        self._lock = threading.Lock()
        self._made: dict[str, tuple[str, RunningPersona]] = {}

    def get(self, name: str) -> RunningPersona:
        """Return a persona. Takes a tenth of a second where its file is new, else no time.

        Raises:
            PersonaNotFound: there is none of that name.
            ConfigError: its file is broken and never was in order, or its intents can't be stored.
        """
        try:
            file = self._catalog.get(name)
        except PersonaNotFound:
            some = ", ".join(each.persona.name for each in self._catalog.personas()) or "none"
            msg = f"No persona is named {name[:80]!r}; there are: {some}."
            raise PersonaNotFound(msg, param="persona") from None
        except ConfigError as error:
            # The fault names paths of the server, which are not the client's business.
            _log.error("persona %s can't be used: %s", name, error.message)
            msg = f"The file of persona {name!r} is broken: `parley persona check` says where."
            raise ConfigError(msg, param="persona") from None
        with self._lock:
            known = self._made.get(name)
            if known is not None and known[0] == file.digest:
                return known[1]
            made = RunningPersona(file.persona, understander_of(file.persona, self._store))
            self._made[name] = (file.digest, made)
            return made

    def warm(self) -> None:
        """Get every persona ready, so that no first turn has to wait for it."""
        for file in self._catalog.personas():
            self.get(file.persona.name)
