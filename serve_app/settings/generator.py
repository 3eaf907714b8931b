"""The engine, and how it samples where nobody says."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serve_app.settings.section import Positive, Seconds, Section

__all__ = ["GeneratorSettings", "SamplingSettings"]


class GeneratorSettings(Section):
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
    prefill_chunk: int = Field(160, ge=3, description="most prompt tokens prefilled in one step")
    max_queued: Positive = Field(256, description="requests that may wait for a slot")
    prefix_cache_mb: int = Field(
        256,
        ge=0,
        description="memory for cached prefixes, three quarters of which give way to running sequences where these "
        "need theirs; 0 turns it off",
    )
    prefix_block: Positive = Field(
        16,
        description="tokens in one block of the prefix cache; a multiple of 16 in the native form",
    )
    prompt_slowdown: float = Field(
        3.0,
        gt=1,
        description="how many times as long as it usually waits for a token a stream may wait for one "
        "for the sake of others' prompts",
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


class SamplingSettings(Section):
    """What applies where a request says nothing."""

    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy; small models like less")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass")
    top_k: int = Field(0, ge=0, description="most candidates; 0 keeps all")
    min_p: float = Field(0.0, ge=0, le=1, description="least probability beside the likeliest's")
    repetition_penalty: float = Field(1.0, ge=0.01, le=10, description="1 does nothing")
