"""Settings from the environment: what is unknown or can't work is refused before anything starts."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import count
from pathlib import Path

import pytest
from pydantic import ValidationError

import serve_app
from serve_app.errors import ConfigError
from serve_app.generation.config import EngineConfig
from serve_app.settings import OTHER_VARIABLES, GeneratorSettings, Settings, parley_home

REPOSITORY = Path(serve_app.__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("PARLEY_GENERATER_SLOTS", "did you mean PARLEY_GENERATOR_SLOTS?"),
        ("PARLEY_SLOTS", "unset it"),
        ("parley_redys_url", "did you mean PARLEY_REDIS_URL?"),
    ],
)
def test_a_variable_that_names_no_section_is_refused_by_name(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "sesame")
    with pytest.raises(ConfigError, match=f"{name} is no setting") as refused:
        Settings.load()
    assert says in refused.value.message
    assert "sesame" not in refused.value.message  # it might be a password


@pytest.mark.parametrize(
    ("name", "key"),
    [("PARLEY_GENERATOR_SLOTZ", "generator.slotz"), ("PARLEY_GENERATOR", '"generator"')],
)
def test_a_variable_that_names_no_key_of_its_section_is_refused(
    name: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "many")
    with pytest.raises(ConfigError, match=key):
        Settings.load()


@pytest.mark.parametrize("penalty", [1e-39, 0.009])
def test_a_default_penalty_that_could_overflow_logits_is_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.repetition_penalty: .*0\.01"):
        Settings.load({"sampling": {"repetition_penalty": penalty}})


def test_every_fault_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_SLOTS", "8")
    monkeypatch.setenv("PARLEY_GENERATOR_SLOTS", "0")
    with pytest.raises(ConfigError, match=r"PARLEY_SLOTS .*generator\.slots: "):
        Settings.load({"ingress": {"doors": 1}})


def test_variables_that_are_no_settings_are_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OTHER_VARIABLES:
        monkeypatch.setenv(name, "x")
    Settings.load()


def test_every_variable_that_the_code_names_is_known() -> None:
    settings = {
        f"PARLEY_{section}_{key}".upper()
        for section, field in Settings.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    }
    files = [
        *(REPOSITORY / "serve_app").rglob("*.py"),
        *(REPOSITORY / "load").rglob("*.py"),
        REPOSITORY / "tests" / "conftest.py",
    ]
    named = {
        name
        for file in files
        for name in re.findall(r"\bPARLEY_[A-Z_]*[A-Z]\b", file.read_text(encoding="utf-8"))
    }
    assert named >= OTHER_VARIABLES
    stand_ins = {"PARLEY_SECTION_KEY"}
    assert named - settings - OTHER_VARIABLES - stand_ins == set()


@pytest.mark.parametrize("key", ["slots", "max_len", "prefill_chunk", "max_queued", "prefix_block"])
def test_the_least_that_a_setting_allows_is_the_least_that_an_engine_takes(key: str) -> None:
    enough = {
        "slots": 8,
        "max_len": 8,
        "max_cached_tokens": 64,
        "prefill_chunk": 8,
        "max_queued": 8,
    }

    def setting_allows(value: int) -> bool:
        try:
            GeneratorSettings.model_validate({key: value})
        except ValidationError:
            return False
        return True

    def engine_takes(value: int) -> bool:
        try:
            EngineConfig(**enough | {key: value})
        except ConfigError:
            return False
        return True

    least = next(value for value in count() if setting_allows(value))
    assert least == next(value for value in count() if engine_takes(value))


@pytest.mark.parametrize("slowdown", [-1.0, 0.5, 1.0, math.nan])
def test_a_slowdown_that_leaves_prompts_no_time_is_refused(slowdown: float) -> None:
    with pytest.raises(ConfigError, match=r"generator\.prompt_slowdown: "):
        Settings.load({"generator": {"prompt_slowdown": slowdown}})
    for enough in (1.01, math.inf):
        Settings.load({"generator": {"prompt_slowdown": enough}})


def test_an_engine_is_limited_as_the_settings_say() -> None:
    chosen = {
        "slots": 5,
        "max_len": 700,
        "max_cached_tokens": 900,
        "prefill_chunk": 11,
        "max_queued": 13,
        "prefix_cache_mb": 3,
        "prefix_block": 17,
        "prompt_slowdown": 1.9,
        "draft_tokens": 5,
    }
    settings = GeneratorSettings.model_validate(chosen)
    expected = chosen | {"max_len": 600, "prefix_cache_bytes": 3 << 20}
    del expected["prefix_cache_mb"]
    config = EngineConfig.of(settings, max_len=600)
    assert dataclasses.asdict(config) == expected


def test_an_empty_home_is_the_default_and_not_the_working_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARLEY_HOME", "")
    assert parley_home() == Path.home() / ".parley"
