"""Which responses an ingress replica tells of by itself."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.ingress import runs as module
from serve_app.ingress.runs import Runs


class Run:
    """A run that says what it is told to say."""

    def __init__(self, _: Any, asked: Any, *, over: Any) -> None:
        self.tenant, self.response = "acme", asked.response
        self.outlives_reader = asked.stored
        self.events: list[bytes] = []
        self.end = lambda: over(self)


class Asked:
    def __init__(self, response: str, *, stored: bool = True) -> None:
        self.response = response
        self.stored = stored


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "ResponseRun", Run)
    return Runs(services=None)  # type: ignore[arg-type]


def test_a_run_that_has_said_nothing_is_known_and_is_not_what_tells(runs: Any) -> None:
    run = runs.start(Asked("resp_1"))
    assert runs.find("acme", "resp_1") is run
    assert runs.told_here("acme", "resp_1") is None
    run.events.append(b"created")
    assert runs.told_here("acme", "resp_1") is run
    run.end()
    assert runs.told_here("acme", "resp_1") is None


def test_only_its_tenant_is_told_by_a_run_and_only_what_is_stored(runs: Any) -> None:
    for run in (runs.start(Asked("resp_1")), runs.start(Asked("resp_2", stored=False))):
        run.events.append(b"created")
    assert runs.told_here("bolt", "resp_1") is None
    assert runs.told_here("acme", "resp_2") is None
