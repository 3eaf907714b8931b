"""Parameters that all generating APIs share, and what the engine makes of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from serve_app.api.body import Neutral, WireModel, at_most, fault
from serve_app.errors import InvalidRequest
from serve_app.messages.generation import SamplingParams

__all__ = [
    "NEUTRAL",
    "GenerationFields",
    "Metadata",
    "ModelName",
    "PersonaName",
    "SamplingDefaults",
    "StreamOptions",
    "TokenCount",
    "TokenId",
    "Truncation",
    "check_token_ids",
]

MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 128
MAX_BIASED_TOKENS = 1024
_SEEDS = 2**64

NEUTRAL: Neutral = {
    "include_stop_str_in_output": (False,),
    "moderation": (),
    "parallel_tool_calls": (True, False),  # without tools, both mean the same
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "use_beam_search": (False,),
}
"""What OpenAI and vLLM know for every generating API and Parley doesn't offer."""


def _one_or_many(value: object) -> object:
    if not isinstance(value, str | list):
        raise fault("invalid_type", "must be a string or an array of strings")
    return [value] if isinstance(value, str) else value


def _token_keys(value: object) -> object:
    """Turn the keys of a `logit_bias`, which JSON only has as strings, into token ids."""
    if not isinstance(value, dict):
        return value
    biases = {}
    for key, bias in value.items():
        # The form is fixed so that no two keys name one token; the length, so that int() is quick.
        if not _is_token_id(key):
            raise fault("invalid_value", "must be a token id, in decimal digits", key)
        biases[int(key)] = bias
    return biases


def _is_token_id(key: str) -> bool:
    return key == "0" or (len(key) <= 10 and key.isascii() and key.isdigit() and key[0] != "0")


TokenCount = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], at_most(16)
]
"""OpenAI's `metadata`: up to 16 pairs of strings."""
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
PersonaName = Annotated[str, Field(min_length=1, max_length=64)]
"""Names the persona that answers."""
Truncation = Literal["auto", "disabled"]
"""Whether the oldest turns may leave a prompt that doesn't fit."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What applies where a request says nothing; a model may come with its own.

    Attributes:
        temperature: as in `SamplingParams`, like all of them.
        top_p: nucleus mass.
        top_k: most candidates; 0 keeps all.
        min_p: least probability beside the likeliest token's.
        repetition_penalty: 1 does nothing.
        presence_penalty: 0 does nothing.
        frequency_penalty: 0 does nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


class StreamOptions(WireModel):
    """How a stream of (chat) completions is sent."""

    NEUTRAL: ClassVar[Neutral] = {
        "include_obfuscation": (False,),
        "continuous_usage_stats": (False,),
    }

    include_usage: bool = False
    include_timing: bool = False


class GenerationFields(WireModel):
    """Parameters of every request that generates.

    `None` means that the request didn't say. `user`, `safety_identifier` and `prompt_cache_key`
    identify and hint; they change no reply.
    """

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="0 and -1 keep all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[
        dict[TokenId, Bias], BeforeValidator(_token_keys), at_most(MAX_BIASED_TOKENS)
    ] = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    min_tokens: int = Field(0, ge=0, le=2**31 - 1)
    ignore_eos: bool = False
    stop: Annotated[list[StopString], BeforeValidator(_one_or_many), at_most(MAX_STOP_STRINGS)] = (
        Field(default_factory=list)
    )
    stop_token_ids: Annotated[list[TokenId], at_most(MAX_STOP_TOKENS)] = Field(default_factory=list)
    stream: bool = False
    priority: int = Field(0, ge=-100, le=100, description="lower goes first")
    timeout: float | None = Field(None, gt=0, le=86400, description="seconds from its arrival")
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=128)
    prompt_cache_key: str | None = Field(None, max_length=512)

    @property
    @abstractmethod
    def token_limit(self) -> int | None:
        """Most new tokens that the request asks for; None leaves it to the server."""

    @property
    @abstractmethod
    def logprobs_wanted(self) -> int | None:
        """Alternatives to report at each position; None for no log probabilities at all."""

    def _given(self, name: str, default: float) -> float:
        return float(getattr(self, name)) if name in self.model_fields_set else default

    @model_validator(mode="after")
    def _minimum_below_limit(self) -> GenerationFields:
        if self.token_limit is not None and self.min_tokens > self.token_limit:
            predicate = f"must not be above the {self.token_limit} tokens that are asked for"
            raise fault("invalid_value", predicate, "min_tokens")
        return self

    def sampling(
        self,
        *,
        max_tokens: int,
        vocab_size: int,
        seed: int,
        choice: int = 0,
        defaults: SamplingDefaults | None = None,
    ) -> SamplingParams:
        """Return what the engine is to do for one choice.

        Args:
            max_tokens: most new tokens, as the planned prompt leaves room for.
            vocab_size: of the model; all token ids must be below it.
            seed: a random number for requests that bring none, the same one for all choices.
            choice: the choice's index; each goes its own way, by `seed + choice`.
            defaults: what applies where the request says nothing.

        Raises:
            InvalidRequest: if a token id is not in the vocabulary.
        """
        for name, tokens in (
            ("logit_bias", self.logit_bias),
            ("stop_token_ids", self.stop_token_ids),
        ):
            check_token_ids(tokens, vocab_size, name)
        own = defaults or SamplingDefaults()
        base = seed if self.seed is None else self.seed
        return SamplingParams(
            max_tokens=max_tokens,
            seed=(base + choice) % _SEEDS,
            min_tokens=min(self.min_tokens, max_tokens),
            temperature=_first(self.temperature, own.temperature),
            top_p=_first(self.top_p, own.top_p),
            top_k=max(0, _first(self.top_k, own.top_k)),
            min_p=_first(self.min_p, own.min_p),
            repetition_penalty=_first(self.repetition_penalty, own.repetition_penalty),
            presence_penalty=self._given("presence_penalty", own.presence_penalty),
            frequency_penalty=self._given("frequency_penalty", own.frequency_penalty),
            logit_bias=tuple(self.logit_bias.items()),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs_wanted,
        )


def check_token_ids(tokens: Iterable[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the model has no token for.

    Raises:
        InvalidRequest: naming the first one.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            msg = f"'{param}' has {token}, but the model's token ids end at {vocab_size - 1}."
            raise InvalidRequest(msg, param=param, code="invalid_value")


Number = TypeVar("Number", int, float)


def _first(given: Number | None, default: Number) -> Number:
    return default if given is None else given
