"""Everything that can be set: one tree with a section for each concern."""

from __future__ import annotations

from serve_app.settings.dialogue import DialogueSettings, ResponsesSettings, TokenizerSettings
from serve_app.settings.generator import GeneratorSettings, SamplingSettings
from serve_app.settings.ingress import AuthSettings, IngressSettings
from serve_app.settings.models import FurtherModel, FurtherPool, ModelSettings, ModelsSettings
from serve_app.settings.places import deploy_folder, drain_flag, parley_home
from serve_app.settings.section import FormName, PrecisionName
from serve_app.settings.state import EncryptionSettings, RedisSettings
from serve_app.settings.telemetry import AccountsSettings, MetricsSettings, TelemetrySettings
from serve_app.settings.tree import OTHER_VARIABLES, Settings

__all__ = [
    "OTHER_VARIABLES",
    "AccountsSettings",
    "AuthSettings",
    "DialogueSettings",
    "EncryptionSettings",
    "FormName",
    "FurtherModel",
    "FurtherPool",
    "GeneratorSettings",
    "IngressSettings",
    "MetricsSettings",
    "ModelSettings",
    "ModelsSettings",
    "PrecisionName",
    "RedisSettings",
    "ResponsesSettings",
    "SamplingSettings",
    "Settings",
    "TelemetrySettings",
    "TokenizerSettings",
    "deploy_folder",
    "drain_flag",
    "parley_home",
]
