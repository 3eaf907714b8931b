"""One tree of settings: defaults, then the deploy file's `args`, then `PARLEY_*` of the environment.

`PARLEY_GENERATOR_SLOTS=8` sets `generator.slots`; the part before the first underscore names the
section. An unknown key is an error wherever it stands, and so is a variable that names no section.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from serve_app.errors import ConfigError

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

PrecisionName = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int8-w8a8", "fp8-w8a8"]
FormName = Literal["cpu", "native", "standard"]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
# It becomes part of a deployment's name, of log files' and of metrics' labels.
ShortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]

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


def parley_home() -> Path:
    """Return the folder that holds models, state and logs: PARLEY_HOME, else `~/.parley`."""
    return Path(os.environ.get("PARLEY_HOME") or "~/.parley").expanduser().absolute()


def deploy_folder() -> Path:
    """Return the folder `deploy` that ships: inside an installed package, or beside it in the repository."""
    package = Path(__file__).parent
    inside = package / "deploy"
    return inside if inside.exists() else package.parent / "deploy"


def drain_flag(home: Path) -> Path:
    """Return the file whose existence tells the ingress of a home's run to take no more work.

    Args:
        home: PARLEY_HOME.
    """
    return home / "run" / "draining"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Section):
    """Which model is served, and in which form."""

    source: str = Field(
        "bundled",
        description="`bundled`, a .gguf file, a folder of safetensors, or a hub name like org/name",
    )
    name: str | None = Field(None, description="name that clients use; null takes the model's own")
    precision: PrecisionName = Field("int8", description="precision of the weights")
    form: FormName | None = Field(
        None,
        description="form of the decoder graph: `native` is Parley's own operators, `cpu` those of "
        "ONNX Runtime, `standard` ONNX's own for TensorRT; null takes native where precision and "
        "processor allow it",
    )
    engines: Path | None = Field(
        None,
        description="folder that GPU machines share TensorRT engines through; null keeps them beside "
        "the prepared model",
    )


class GeneratorSettings(_Section):
    """The engine of one generator replica."""

    backend: Literal["auto", "simulated"] = Field(
        "auto",
        description="what computes logits; `auto` takes what the model's form is for, TensorRT on a GPU "
        "for `standard` and the CPU for the others; `simulated` writes noise for nothing, to measure "
        "what is around it, and wants model.name to say so",
    )
    slots: Positive = Field(32, description="most sequences that run at once")
    # One token of a prompt and one of a reply.
    max_len: int = Field(2048, ge=2, description="most tokens of one sequence, prompt and output")
    max_cached_tokens: Positive = Field(
        24576, description="most tokens that running sequences may come to hold in the K/V cache"
    )
    # A chunk of less could be forced to leave a single token over, see `EngineConfig`.
    prefill_chunk: int = Field(128, ge=3, description="most prompt tokens prefilled in one step")
    max_queued: Positive = Field(256, description="requests that may wait for a slot")
    prefix_cache_mb: int = Field(
        256, ge=0, description="memory for cached prefixes; 0 turns it off"
    )
    prefix_block: Positive = Field(
        16,
        description="tokens in one block of the prefix cache; a multiple of 16 in the native form",
    )
    prompt_slowdown: float = Field(
        2.5,
        gt=1,
        description="how many times as long as usual a step may take for the sake of prompts",
    )
    draft_tokens: int = Field(
        8,
        ge=0,
        description="tokens of a stream that are guessed ahead from its own text and checked in one "
        "step, at most; 0 guesses nothing, and replies are the same either way",
    )
    threads: int = Field(0, ge=0, description="threads of the runtime; 0 takes the replica's CPUs")
    gpu_weights_mb: int | None = Field(
        None,
        ge=0,
        description="memory of the GPU for weights, where the engine was built with --weight-streaming; "
        "the rest stays on the host, and null takes what slots leave room for",
    )
    warm_up_tokens: int = Field(
        64,
        ge=0,
        le=256,
        description="tokens of the prompt that a replica computes before it takes requests; 0 for none",
    )
    stall_timeout_s: Seconds = Field(
        30.0, description="a step that takes longer fails the health check"
    )
    drain_timeout_s: Seconds = Field(
        120.0,
        description="time for running replies when a replica stops; what is left then goes on with "
        "another one",
    )


class _WithChanges(_Section):
    """Has an engine that differs from another one in what is said of it."""

    generator: GeneratorSettings = Field(
        GeneratorSettings(), description="what its engine has otherwise than `generator`"
    )

    @field_serializer("generator")
    def _changes(self, generator: GeneratorSettings) -> dict[str, Any]:
        """Write what was said and nothing else: defaults aren't changes."""
        return generator.model_dump(mode="json", exclude_unset=True)


class FurtherModel(_WithChanges):
    """A model beside the first one."""

    source: str = Field(description="as `model.source`")
    name: str | None = Field(None, description="name that clients use; null takes its key")
    precision: PrecisionName = Field("int8", description="precision of the weights")
    form: FormName | None = Field(None, description="form of the decoder graph, as `model.form`")
    engines: Path | None = Field(
        None, description="as `model.engines`; null takes the first model's"
    )


class FurtherPool(_WithChanges):
    """A further pool of generators of a model."""

    model: ShortName | None = Field(
        None, description="key of its model in `models.also`; null is the first model"
    )
    precision: PrecisionName | None = Field(
        None, description="precision of the weights; null takes the model's"
    )
    form: FormName | None = Field(
        None,
        description="form of the graph; null takes the model's with its precision, else the fastest",
    )
    engines: Path | None = Field(None, description="as `model.engines`; null takes the model's")


class ModelsSettings(_Section):
    """Models beside the first one, and further pools of generators."""

    also: dict[ShortName, FurtherModel] = Field(
        {},
        description="further models, by a key: each has the deployments Generator-KEY and Tokenizer-KEY",
    )
    pools: dict[ShortName, FurtherPool] = Field(
        {},
        description="further pools of a model's generators, by a key: each is the deployment Generator-KEY",
    )


class SamplingSettings(_Section):
    """What applies where a request says nothing."""

    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy; small models like less")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass")
    top_k: int = Field(0, ge=0, description="most candidates; 0 keeps all")
    min_p: float = Field(0.0, ge=0, le=1, description="least probability beside the likeliest's")
    repetition_penalty: float = Field(1.0, ge=0.01, le=10, description="1 does nothing")


class IngressSettings(_Section):
    """What the HTTP side accepts."""

    max_body_bytes: Positive = Field(1_048_576, description="largest request body")
    max_json_depth: Positive = Field(32, description="deepest nesting of a JSON body")
    max_messages: Positive = Field(2048, description="most messages in one request")
    read_timeout_s: Seconds = Field(
        10.0, description="time in which a request's head, and then its body, must arrive"
    )
    request_timeout_s: Seconds = Field(
        600.0, description="time from a request's arrival in which its reply must be done"
    )
    max_choices: Positive = Field(8, description="largest `n`")
    max_concurrent: Positive = Field(512, description="requests in progress per ingress replica")
    admission_timeout_s: Seconds = Field(
        30.0, description="time in which a generator must take a request or refuse it"
    )
    start_timeout_s: Seconds = Field(
        180.0,
        description="time that a request waits for a generator while none is up, as the first one starts "
        "or the only one is replaced; longer than generator.drain_timeout_s and a start together",
    )
    generator_silence_s: Seconds = Field(
        10.0, description="a generator that sends no frame for this long is taken for lost"
    )
    max_moves: int = Field(
        3,
        ge=0,
        description="how often a reply may go on with another generator when its own is lost; once "
        "more, and it ends with an error. One that stops in good order doesn't count",
    )


class DialogueSettings(_Section):
    """How turns are planned."""

    persona: str = Field(
        "You are a helpful AI assistant.",
        description="system prompt of conversations that bring none of their own; never dropped",
    )
    personas: Path | None = Field(
        None, description="folder of persona files; null takes the ones that ship"
    )
    default_persona: str | None = Field(
        None, description="name of the persona of conversations that name none; null: no persona"
    )
    summaries: bool = Field(
        default=True,
        description="summarise turns that left the prompt, where the persona says so too",
    )
    recalled_turns: int = Field(
        3,
        ge=0,
        description="most turns that left a persona's prompt and are quoted in it where the newest turn "
        "is about them; 0 quotes none",
    )
    summary_tokens: Positive = Field(96, description="longest summary")
    profiles: bool = Field(
        default=True,
        description="keep facts that users say of themselves, where the persona says so too",
    )
    profile_ttl_s: Positive = Field(
        365 * 86400, description="a profile to which nothing is added for this long is forgotten"
    )
    profile_facts: Positive = Field(64, description="most facts of one profile; the oldest leave")
    memory_share: float = Field(
        0.25,
        ge=0,
        le=0.5,
        description="most of the context that profile, summary and recalled turns take together",
    )
    reply_tokens: Positive = Field(
        512, description="room kept for the reply when a request names no max_tokens"
    )
    truncate_stride: int = Field(
        256,
        ge=0,
        description="oldest turns leave the prompt in strides of about this many tokens, so that its "
        "cached beginning serves several turns; 0 lets as few leave as possible",
    )
    conversation_ttl_s: Positive = Field(
        30 * 86400, description="a conversation nobody touches for this long is forgotten"
    )
    max_items: Positive = Field(10_000, description="most items kept of one conversation")


class ResponsesSettings(_Section):
    """How responses are stored, and what happens when two meet in one conversation."""

    store: bool = Field(
        default=True,
        description="keep the responses to requests that don't say; `store` in one decides",
    )
    on_busy: Literal["enqueue", "reject", "interrupt"] = Field(
        "enqueue",
        description="what a turn does while another one of its conversation runs; `on_busy` in a "
        "request decides",
    )
    max_queued_turns: Positive = Field(
        16, description="most turns of one conversation that run or wait"
    )
    journal_interval_s: float = Field(
        0.2,
        gt=0,
        le=1,
        description="how often what running responses have said is written to their journals",
    )
    journal_ttl_s: Positive = Field(
        600, description="time that the journal of a response nobody finishes is kept"
    )
    journal_entries: Positive = Field(
        20_000, description="most entries of a journal, each of them one interval's events"
    )
    lease_s: Seconds = Field(
        15.0, description="a response whose replica is silent for this long is lost"
    )
    idempotency_ttl_s: Positive = Field(
        86400, description="time that an Idempotency-Key stands for its first request"
    )


class AccountsSettings(_Section):
    """How long it is known where the time of a request went."""

    kept: int = Field(
        1000, ge=0, description="most accounts of requests kept per tenant; 0 keeps none"
    )
    ttl_s: Positive = Field(900, description="time for which an account is kept")


class EncryptionSettings(_Section):
    """Encryption of what is stored."""

    enabled: bool = Field(default=True, description="false stores what people say as it is")
    keys_file: Path | None = Field(
        None,
        description="file of keys, in JSON or as in `keys`; null takes PARLEY_HOME/encryption.json, "
        "which the first `parley up` makes",
    )
    keys: SecretStr | None = Field(
        None, description="the keys themselves, as ID:BASE64, newest last, with commas between"
    )


class TokenizerSettings(_Section):
    """The tokenizer deployment."""

    cache_entries: int = Field(4096, ge=0, description="encoded messages kept for reuse")


class RedisSettings(_Section):
    """Where state lives."""

    url: SecretStr | None = Field(
        None, description="redis:// or rediss:// URL; null takes the one that `parley up` started"
    )
    url_file: Path | None = Field(
        None,
        description="file that holds the URL, such as a mounted secret; read at the start, where "
        "`url` is null",
    )
    replicas: int = Field(
        0,
        ge=0,
        description="replicas of Redis that must have a turn before it counts as stored; a Redis "
        "with a failover wants 1 or more",
    )
    timeout_s: Seconds = Field(2.0, description="longest wait for one answer")
    pool_size: Positive = Field(64, description="most connections per replica")
    key_prefix: str = Field("parley", description="first part of every key")


class AuthSettings(_Section):
    """Who may call."""

    keys_file: Path | None = Field(
        None,
        description="JSON file of hashed API keys; null takes PARLEY_HOME/keys.json if it exists",
    )
    required: bool | None = Field(
        None, description="refuse requests without a key; null means: as soon as a key exists"
    )


class MetricsSettings(_Section):
    """Where metrics are had beside the Ingress's `/metrics`."""

    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port on which each node answers `/metrics` for all of its replicas; wanted where "
        "there are several nodes, since the Ingress's comes from whichever node has answered; 0: none",
    )


class TelemetrySettings(_Section):
    """What Parley tells of its requests in traces and logs."""

    traces: bool = Field(
        default=False,
        description="send spans of each request's way to an OpenTelemetry collector; takes "
        "`pip install 'parley[otel]'`",
    )
    trace_endpoint: str = Field(
        "http://127.0.0.1:4318/v1/traces",
        description="where spans go, by OTLP over HTTP; credentials go into "
        "OTEL_EXPORTER_OTLP_HEADERS of the environment",
    )
    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the requests that are traced, of those that come without a trace of "
        "their own",
    )
    trace_text: bool = Field(
        default=False,
        description="put what people and the model say into spans, and what exceptions quote of it "
        "into logs",
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="form of the replicas' logs: `json` is one object a line, `text` leaves it to "
        "Serve's logging_config.encoding",
    )

    @field_validator("trace_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, endpoint: str) -> str:
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", endpoint):
            # It isn't quoted: it may hold a password.
            msg = (
                "give an http:// or https:// URL without user, password and query, such as "
                "http://collector:4318/v1/traces"
            )
            raise ValueError(msg)
        return endpoint


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
