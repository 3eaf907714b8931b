"""What traces tell of a request's inference, by the GenAI semantic conventions.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serve_app.api.reply import Reply, Usage
from serve_app.messages.generation import GenerateRequest, SamplingParams
from serve_app.messages.tokenization import Message
from serve_app.telemetry import tracing
from serve_app.telemetry.origin import Origin, current

__all__ = ["Inference", "InferenceSpan"]

Operation = Literal["chat", "text_completion"]


@dataclass(frozen=True, slots=True)
class Inference:
    """What a request asks of the model.

    Attributes:
        operation: what the conventions call it.
        model: name of the model.
        messages: what it is asked; told only where traces may have text.
        streams: whether the client reads the reply as it comes.
        stop: strings that end the reply; told only where traces may have text.
        prompts: how many prompts are answered.
    """

    operation: Operation
    model: str
    messages: Sequence[Message] = ()
    streams: bool = False
    stop: Sequence[str] = ()
    prompts: int = 1


class InferenceSpan:
    """The span from a request's submission to the end of its reply.

    Args:
        inference: what is asked; None makes no span.
        requests: the request's choices, as generators get them.
    """

    __slots__ = ("prompts", "span")

    def __init__(self, inference: Inference | None, requests: Sequence[GenerateRequest]) -> None:
        self.span = tracing.NO_SPAN
        self.prompts = 1 if inference is None else inference.prompts
        if inference is None or not tracing.tracing():
            return
        self.span = tracing.span(
            f"{inference.operation} {inference.model}",
            "client",
            # What a sampler may decide by has to be there from the beginning.
            {
                "gen_ai.operation.name": inference.operation,
                "gen_ai.provider.name": "parley",
                "gen_ai.request.model": inference.model,
            },
        )
        if self.span.recording:
            self.span.set(_asked(inference, requests))

    def fail(self, code: str) -> None:
        """Mark it as failed."""
        self.span.fail(code)

    def end(
        self,
        *,
        model: str,
        usage: Usage | None,
        replies: Sequence[Reply],
        first_token_s: float | None,
    ) -> None:
        """Tell what came of it, and end it; a second time does nothing.

        Args:
            model: that answered.
            usage: what the reply cost; None, if it did not come to its end.
            replies: one for each choice that did.
            first_token_s: seconds from the request's arrival to its first token, if one came.
        """
        if self.span.recording:
            told: dict[str, tracing.Value] = {"gen_ai.response.model": model}
            if first_token_s is not None:
                told["gen_ai.response.time_to_first_chunk"] = first_token_s
            if usage is not None:
                told |= {
                    "gen_ai.usage.input_tokens": usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": usage.completion_tokens,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                }
            if replies:
                told["gen_ai.response.finish_reasons"] = [str(reply.reason) for reply in replies]
            if replies and tracing.takes_text():
                told["gen_ai.output.messages"] = _output(replies)
            self.span.set(told)
        self.span.end()


def _asked(inference: Inference, requests: Sequence[GenerateRequest]) -> tracing.Attributes:
    origin = current() or Origin()
    sampling = requests[0].sampling
    told: dict[str, tracing.Value | None] = {
        "gen_ai.response.id": origin.request,
        "gen_ai.conversation.id": origin.conversation,
        "parley.tenant": origin.tenant,
        "gen_ai.output.type": "text",
        "gen_ai.request.stream": inference.streams,
        "gen_ai.request.choice.count": len(requests) if len(requests) > 1 else None,
        **_sampled_by(sampling),
    }
    if tracing.takes_text():
        told["gen_ai.input.messages"] = _input(inference.messages)
        told["gen_ai.request.stop_sequences"] = list(inference.stop) or None
    return {name: value for name, value in told.items() if value is not None}


def _sampled_by(sampling: SamplingParams) -> dict[str, tracing.Value | None]:
    return {
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
        # Attributes are signed, and of 64 bits.
        "gen_ai.request.seed": sampling.seed if sampling.seed < 1 << 63 else None,
    }


def _input(messages: Sequence[Message]) -> str:
    return json.dumps(
        [{"role": one.role, "parts": [_text(one.content)]} for one in messages], ensure_ascii=False
    )


def _output(replies: Sequence[Reply]) -> str:
    return json.dumps(
        [
            {
                "role": "assistant",
                "parts": [_text(reply.text)],
                "finish_reason": str(reply.reason),
            }
            for reply in replies
        ],
        ensure_ascii=False,
    )


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}
