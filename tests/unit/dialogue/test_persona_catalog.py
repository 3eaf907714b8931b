"""The catalog reads files again when they change, and keeps what was good."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from serve_app.dialogue.personas.catalog import PersonaCatalog
from serve_app.errors import ConfigError, PersonaNotFound

CLOCK_STEP_S = 2.5


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(tmp_path: Path, clock: Clock) -> PersonaCatalog:
    write(tmp_path, "anna", "Anna")
    return PersonaCatalog(tmp_path, check_every_s=2.0, clock=clock)


def write(folder: Path, name: str, title: str) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(f"name: {name}\ntitle: {title}\nsystem_prompt: You are {title}.\n")
    return file


def title(catalog: PersonaCatalog) -> str:
    return catalog.get("anna").persona.title


def test_a_changed_file_is_read_again_but_not_before_its_time(
    catalog: PersonaCatalog, tmp_path: Path, clock: Clock
) -> None:
    assert title(catalog) == "Anna"
    write(tmp_path, "anna", "Anna Maria")
    assert title(catalog) == "Anna"
    clock.now += CLOCK_STEP_S
    assert title(catalog) == "Anna Maria"


def test_a_file_that_was_only_touched_is_not_parsed_again(
    catalog: PersonaCatalog, tmp_path: Path, clock: Clock
) -> None:
    before = catalog.get("anna")
    os.utime(tmp_path / "anna.yaml", (1, 1))
    clock.now += CLOCK_STEP_S
    assert catalog.get("anna") is before


def test_a_broken_file_leaves_the_last_good_persona_and_says_why_once(
    catalog: PersonaCatalog, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert title(catalog) == "Anna"
    file = write(tmp_path, "anna", "[")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += CLOCK_STEP_S
            assert title(catalog) == "Anna"
    assert len({id(record) for record in caplog.records}) == 1  # however many handlers have it
    assert f"{file}:" in caplog.text
    assert "stays as it was" in caplog.text
    assert f"{file}:" in catalog.faults()["anna"]
    write(tmp_path, "anna", "Mended")
    clock.now += CLOCK_STEP_S
    assert title(catalog) == "Mended"
    assert catalog.faults() == {}


def test_a_file_that_never_was_in_order_is_refused_with_its_faults(
    catalog: PersonaCatalog, tmp_path: Path
) -> None:
    file = write(tmp_path, "bert", "[")
    with pytest.raises(ConfigError, match=str(file)):
        catalog.get("bert")
    assert [found.persona.name for found in catalog.personas()] == ["anna"]


def test_files_come_and_go(catalog: PersonaCatalog, tmp_path: Path, clock: Clock) -> None:
    assert title(catalog) == "Anna"
    write(tmp_path, "zoe", "Zoe")
    (tmp_path / "anna.yaml").unlink()
    clock.now += CLOCK_STEP_S
    assert [found.persona.name for found in catalog.personas()] == ["zoe"]
    with pytest.raises(PersonaNotFound, match="there are: zoe"):
        catalog.get("anna")
