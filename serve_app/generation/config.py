"""What an engine is given and what it tells about itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from serve_app.errors import ConfigError
from serve_app.settings import GeneratorSettings

__all__ = ["EngineConfig", "EngineStats"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The limits of one engine.

    Attributes:
        slots: most sequences that run at once.
        max_len: most tokens of one sequence, prompt and output.
        max_cached_tokens: most tokens that running sequences may come to hold together.
        prefill_chunk: most prompt tokens computed in a step in which others decode.
        max_queued: most sequences that wait for a slot while all are taken.
        prefix_cache_bytes: memory for cached prefixes; 0 turns the cache off.
        prefix_block: tokens in one block of the prefix cache.
        prompt_slowdown: how many times as long as usual a step may take for the sake of prompts while
            others decode; above 1.
        draft_tokens: tokens of a sequence that are guessed ahead in a step, at most; 0 for none.

    Raises:
        ConfigError: a limit makes no sense, alone or with another.
    """

    slots: int
    max_len: int
    max_cached_tokens: int
    prefill_chunk: int
    max_queued: int
    prefix_cache_bytes: int = 0
    prefix_block: int = 16
    prompt_slowdown: float = math.inf
    draft_tokens: int = 0

    @classmethod
    def of(cls, settings: GeneratorSettings, *, max_len: int) -> Self:
        """Return what the settings of a generator replica say.

        Args:
            settings: the settings.
            max_len: most tokens of one sequence that the model and they allow.
        """
        return cls(
            slots=settings.slots,
            max_len=max_len,
            max_cached_tokens=settings.max_cached_tokens,
            prefill_chunk=settings.prefill_chunk,
            max_queued=settings.max_queued,
            prefix_cache_bytes=settings.prefix_cache_mb << 20,
            prefix_block=settings.prefix_block,
            prompt_slowdown=settings.prompt_slowdown,
            draft_tokens=settings.draft_tokens,
        )

    def __post_init__(self) -> None:
        # A chunk of less than 3 could be forced to leave a single token over.
        least = {"slots": 1, "max_len": 2, "prefill_chunk": 3, "max_queued": 1, "prefix_block": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                msg = f"generator.{name} is {getattr(self, name)}; set it to {bound} or more."
                raise ConfigError(msg)
        if not self.prompt_slowdown > 1:  # nor what is no number
            msg = (
                f"generator.prompt_slowdown is {self.prompt_slowdown:g}; set it above 1, or no prompt "
                "could ever be computed while others decode."
            )
            raise ConfigError(msg)
        if self.draft_tokens < 0:
            msg = f"generator.draft_tokens is {self.draft_tokens}; set it to 0 or more."
            raise ConfigError(msg)
        if self.prefix_cache_bytes < 0:
            msg = "The prefix cache can't have less than 0 bytes; set generator.prefix_cache_mb."
            raise ConfigError(msg)
        if self.max_cached_tokens < self.max_len:
            msg = (
                f"generator.max_cached_tokens ({self.max_cached_tokens}) must be at least "
                f"generator.max_len ({self.max_len}), or a long sequence could never run."
            )
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine at one moment.

    Attributes:
        slots: number of slots.
        free_slots: slots with nobody in them.
        running: sequences that have a slot.
        waiting: sequences that wait for one.
        queued_prompt_tokens: prompt tokens that have yet to be computed, running ones' included.
        cached_tokens: tokens in the slots' K/V.
        reserved_tokens: tokens that the running sequences may come to hold.
        generated_total: tokens sampled since the start.
        prefilled_total: prompt tokens computed since the start, the last one of each prompt left out.
        prefix_hits_total: prompt tokens copied from the prefix cache since the start.
        drafted_total: tokens computed since the start that were guesses of what comes next.
        draft_hits_total: guesses among them that were right.
        steps_total: steps since the start.
        step_s: seconds that the last step took.
        tokens_per_s: prompt and output tokens computed per second of recent steps.
        work_s_total: seconds that all of it would have taken with every slot taken, see `Pace.work_s`.
        prefix_blocks: blocks of the prefix cache in use.
        prefix_capacity: blocks of the prefix cache.
        failed_steps: steps in a row that failed.
    """

    slots: int
    free_slots: int
    running: int
    waiting: int
    queued_prompt_tokens: int
    cached_tokens: int
    reserved_tokens: int
    generated_total: int
    prefilled_total: int
    prefix_hits_total: int
    drafted_total: int
    draft_hits_total: int
    steps_total: int
    step_s: float
    tokens_per_s: float
    work_s_total: float
    prefix_blocks: int
    prefix_capacity: int
    failed_steps: int
