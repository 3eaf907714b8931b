"""One tree of settings: defaults, then the deploy file's `args`, then `PARLEY_*` of the environment.

`PARLEY_GENERATOR_SLOTS=8` sets `generator.slots`; the part before the first underscore names the
section. An unknown key is an error wherever it stands, and so is a variable that names no section.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from serve_app.errors import ConfigError
from serve_app.settings.dialogue import DialogueSettings, ResponsesSettings, TokenizerSettings
from serve_app.settings.generator import GeneratorSettings, SamplingSettings
from serve_app.settings.ingress import AuthSettings, IngressSettings
from serve_app.settings.models import ModelSettings, ModelsSettings
from serve_app.settings.state import EncryptionSettings, RedisSettings
from serve_app.settings.telemetry import AccountsSettings, MetricsSettings, TelemetrySettings

__all__ = ["OTHER_VARIABLES", "Settings"]

_PREFIX = "PARLEY_"
OTHER_VARIABLES = frozenset(
    {
        "PARLEY_API_KEY",  # what `parley chat` and `parley status` send
        "PARLEY_DEBUG",  # 1 shows the traceback behind a command's sentence
        "PARLEY_HOME",  # see `parley_home`
        "PARLEY_RUN_ID",  # marks the processes of a run
        "PARLEY_TEST_HOME",  # where the tests keep prepared models
    }
)
"""Variables of the environment that are no settings; any other `PARLEY_*` must be one."""


class Settings(BaseSettings):
    """Everything that can be set. Sections are described by their own classes."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )

    model: ModelSettings = ModelSettings()
    generator: GeneratorSettings = GeneratorSettings()
    models: ModelsSettings = ModelsSettings()
    sampling: SamplingSettings = SamplingSettings()
    ingress: IngressSettings = IngressSettings()
    dialogue: DialogueSettings = DialogueSettings()
    responses: ResponsesSettings = ResponsesSettings()
    accounts: AccountsSettings = AccountsSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    redis: RedisSettings = RedisSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    auth: AuthSettings = AuthSettings()
    metrics: MetricsSettings = MetricsSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment above the deploy file."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _chunk_fits(self) -> Settings:
        if self.generator.max_cached_tokens < self.generator.max_len:
            msg = "generator.max_cached_tokens must be at least generator.max_len"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _noise_is_named(self) -> Settings:
        if self.generator.backend == "simulated" and self.model.name != "simulated":
            msg = (
                "generator.backend is simulated, which answers with noise: set model.name to "
                "simulated too, so that nobody takes it for a model"
            )
            raise ValueError(msg)
        return self

    @classmethod
    def load(cls, args: dict[str, Any] | None = None) -> Settings:
        """Build the settings from a deploy file's `args` and the environment.

        Raises:
            ConfigError: naming each key and each variable that is unknown or wrong.
        """
        faults = [*_unknown_variables()]
        try:
            settings = cls(**(args or {}))
        except SettingsError as error:
            faults.append(f"{error}; set its keys one by one, as PARLEY_SECTION_KEY")
        except ValidationError as error:
            faults += [_fault(found["loc"], found["msg"]) for found in _found(error)]
        if faults:
            msg = f"Wrong settings: {'; '.join(faults)}. `parley config show` prints every key."
            raise ConfigError(msg)
        return settings


def _unknown_variables() -> Iterator[str]:
    """Find the variables that pydantic-settings passes over, because they name no section."""
    for name in sorted(os.environ):
        upper = name.upper()  # letter case makes no difference to pydantic-settings
        if not upper.startswith(_PREFIX) or upper in OTHER_VARIABLES:
            continue
        section, *key = upper.removeprefix(_PREFIX).lower().split("_", 1)
        if section in Settings.model_fields:
            continue
        close = difflib.get_close_matches(section, Settings.model_fields, n=1)
        meant = "_".join([*close, *key]).upper()
        hint = f"did you mean {_PREFIX}{meant}?" if close else "unset it"
        yield f"the environment's {name} is no setting ({hint})"


def _found(error: ValidationError) -> list[Any]:
    return list(error.errors(include_input=False, include_url=False))


def _fault(place: tuple[int | str, ...], message: str) -> str:
    said = message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, place))}: {said}" if place else said
