"""What a persona file may say."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serve_app.dialogue.nlu.understanding import Emotion, EntityKind, Sentiment
from serve_app.settings.section import Positive

__all__ = [
    "ANY_LANGUAGE",
    "Action",
    "CheckName",
    "Condition",
    "IntentExamples",
    "Limits",
    "Memory",
    "Persona",
    "Rule",
    "SamplingDefaults",
    "Shaping",
    "Slot",
    "Texts",
    "UnderstandingSettings",
    "placeholders",
    "text_in",
]

Action: TypeAlias = Literal["answer", "ask", "clarify", "hand_over", "refuse", "goodbye"]
CheckName: TypeAlias = Literal["date_in_the_past", "repeats_itself"]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2}$")]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Sentence = Annotated[str, Field(min_length=1, max_length=500)]
Share = Annotated[float, Field(ge=0, le=1)]

ANY_LANGUAGE = "any"
"""Key of the words for languages that have none of their own."""


def _by_language(value: object) -> object:
    return {ANY_LANGUAGE: value} if isinstance(value, str) else value


Texts = Annotated[
    dict[Annotated[str, Field(pattern=r"^([a-z]{2}|any)$")], Text],
    BeforeValidator(_by_language),
    Field(min_length=1),
]
"""Fixed words: one text, or one by language (`en`, `de`, …) with `any` for the others."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class IntentExamples(_Part):
    """Something that users of a persona want, learned from sentences."""

    description: str = Field("", max_length=500, description="for people; nothing reads it")
    needs: list[Name] = Field([], description="slots that must be filled for it, in asking order")
    examples: list[Sentence] = Field(min_length=3, description="how users say it")
    held_out: list[Sentence] = Field(
        [], description="never learned from: `parley persona check` measures with them"
    )


class UnderstandingSettings(_Part):
    """How turns are understood."""

    threshold: Share = Field(0.4, description="an intent less likely than this is none")
    out_of_scope: list[Sentence] = Field([], description="sentences that are none of the intents")
    languages: list[LanguageCode] = Field(
        ["en", "de", "zh"], min_length=1, description="languages that users may write in"
    )
    region: str = Field(
        "US",
        pattern=r"^[A-Z]{2}$",
        description="country whose phone numbers and order of day and month are meant",
    )


class Slot(_Part):
    """A value that an intent needs."""

    entity: EntityKind | Literal["text"] = Field(
        description="what fills it; `text` takes the whole answer to the question"
    )
    ask: Texts = Field(description="the question")
    pattern: str | None = Field(
        None, max_length=200, description="regular expression of a `code`; null takes any code"
    )
    choices: dict[str, list[Sentence]] = Field(
        {}, description="values of a `choice` and further words for each"
    )

    @model_validator(mode="after")
    def _fits_its_entity(self) -> Slot:
        if (self.entity == "choice") != bool(self.choices):
            msg = "`choices` belong to `entity: choice`, and it needs them"
            raise ValueError(msg)
        if self.pattern is not None:
            if self.entity != "code":
                msg = "`pattern` belongs to `entity: code`"
                raise ValueError(msg)
            try:
                re.compile(self.pattern)
            except re.error as error:
                msg = f"`pattern` is no regular expression: {error}"
                raise ValueError(msg) from None
        return self


class Condition(_Part):
    """When a rule applies: all that is named must hold."""

    intents: list[Name] = Field([], description="the turn is about one of them")
    min_confidence: Share | None = Field(None, description="and at least this certainly")
    unrecognised_turns: Positive | None = Field(
        None, description="so many turns in a row, this one too, were no intent"
    )
    entities: list[EntityKind] = Field([], description="the turn has all of them")
    slots_missing: bool | None = Field(None, description="the intent needs a slot that is empty")
    asked: Positive | None = Field(
        None, description="the first empty slot was asked for so many times"
    )
    filled: list[Name] = Field([], description="these slots are filled")
    sentiments: list[Sentiment] = Field([], description="the turn's sentiment is one of them")
    emotions: list[Emotion] = Field([], description="the turn's emotion is one of them")
    negative_turns: Positive | None = Field(
        None, description="so many turns in a row, this one too, were negative"
    )
    mood_below: float | None = Field(
        None, ge=-1, le=1, description="the mood over turns is worse; −1 is the worst"
    )
    languages: list[LanguageCode] = Field([], description="the turn is in one of them")
    languages_other_than: list[LanguageCode] = Field([], description="the turn is in none of them")
    turns: Positive | None = Field(None, description="it is at least the user's so manieth turn")
    checks: list[CheckName] = Field([], description="what takes code: all of these hold")

    @property
    def is_empty(self) -> bool:
        """Whether it always holds."""
        return self == Condition()


class Rule(_Part):
    """What is done in one case. The first rule whose condition holds decides."""

    name: Name
    when: Condition = Condition()
    action: Action
    template: Name | None = Field(None, description="fixed words instead of the model's")
    instruction: str | None = Field(
        None, max_length=2000, description="what the model is told beside its system prompt"
    )

    @model_validator(mode="after")
    def _is_complete(self) -> Rule:
        if self.action == "ask" and not self.when.slots_missing:
            msg = "a rule that asks needs `slots_missing: true` in its `when`"
            raise ValueError(msg)
        if self.action == "ask" and self.template is not None:
            msg = "a rule that asks takes its words from the slot's `ask`; remove `template`"
            raise ValueError(msg)
        if self.template is not None and self.instruction is not None:
            msg = "`template` and `instruction` exclude each other: fixed words need no model"
            raise ValueError(msg)
        return self


class SamplingDefaults(_Part):
    """How tokens are chosen where a request says nothing; null leaves it to the settings."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


class Memory(_Part):
    """What is remembered."""

    window_turns: Positive = Field(20, description="most turns in the prompt, word for word")
    summary: bool = Field(default=True, description="summarise the turns that left the window")
    profile: bool = Field(
        default=False, description="keep facts about the user, over conversations"
    )
    ttl_s: Positive | None = Field(
        None, description="forget a conversation nobody touches for so long; null: the settings'"
    )


class Limits(_Part):
    """What one conversation may take."""

    max_input_chars: Positive = Field(8000, description="longest turn of a user")
    max_reply_tokens: Positive | None = Field(None, description="longest reply; null: no other")
    max_turns: Positive | None = Field(None, description="most turns of a user; null: no limit")
    concurrent_turns: Literal["enqueue", "reject", "interrupt"] = Field(
        "enqueue", description="what happens to a message that comes while another is answered"
    )


class Shaping(_Part):
    """What may shape the reply beside what was said."""

    emotion: bool = Field(default=False, description="the user's emotion")
    preferences: bool = Field(default=False, description="the user's profile")
    guidance: dict[Emotion, Sentence] = Field(
        {}, description="what the model is told when the user shows this emotion"
    )

    @model_validator(mode="after")
    def _guides_only_where_allowed(self) -> Shaping:
        if self.guidance and not self.emotion:
            msg = "`guidance` needs `emotion: true`"
            raise ValueError(msg)
        return self


class Persona(_Part):
    """Who answers. What its parts refer to is checked by `loading.read_persona`."""

    name: Name
    title: str = Field(min_length=1, max_length=100)
    description: str = Field("", max_length=1000)
    language: LanguageCode = Field("en", description="the one to expect before a user has written")
    system_prompt: Text
    greeting: Texts | None = None
    understanding: UnderstandingSettings = UnderstandingSettings()
    intents: dict[Name, IntentExamples] = {}
    slots: dict[Name, Slot] = {}
    templates: dict[Name, Texts] = {}
    policy: list[Rule] = []
    sampling: SamplingDefaults = SamplingDefaults()
    memory: Memory = Memory()
    limits: Limits = Limits()
    shaping: Shaping = Shaping()


def placeholders(text: str) -> list[str]:
    """Return the names in braces of fixed words.

    Raises:
        ValueError: a brace has no partner, or more than a name is in it.
    """
    names = []
    for _, name, spec, conversion in string.Formatter().parse(text):
        if name is None:
            continue
        if spec or conversion or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            msg = f"`{{{name}}}` is no slot's name; write {{{{ and }}}} for braces"
            raise ValueError(msg)
        names.append(name)
    return names


def text_in(texts: Texts, language: str) -> str:
    """Return the words for a language, else those for any, else the first."""
    return texts.get(language) or texts.get(ANY_LANGUAGE) or next(iter(texts.values()))
