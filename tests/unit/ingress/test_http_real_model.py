"""The bundled model behind the whole of the HTTP side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from ingress_harness import MODEL, Service, service, settings_with

from serve_app.generation.backends.base import Backend
from serve_app.generation.backends.opening import open_backend
from serve_app.models.store import PreparedModel

# Kernels round differently from CPU to CPU. In the answers to these, each token is so much likelier
# than the next that none of that changes it.
SENTENCE = "Complete this sentence: The capital of France is"
TURNS: list[Any] = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "And of Italy?"},
]


@pytest.fixture(scope="module")
def running(
    bundled_int8: PreparedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    def backend() -> Backend:
        return open_backend(bundled_int8, threads=2)

    settings = settings_with(generator={"prefix_cache_mb": 32, "prefix_block": 16})
    home = tmp_path_factory.mktemp("home")
    with service(bundled_int8.path, home, settings=settings, backends=[backend]) as made:
        yield made


def ask(client: openai.OpenAI, messages: list[Any], **given: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=60, **given
    )


def test_it_answers_sensibly_and_ends_its_turn_itself(running: Service) -> None:
    with running.openai() as client:
        asked = [{"role": "user", "content": SENTENCE}]
        whole = ask(client, asked)
        chunks = list(ask(client, asked, stream=True))
    text = whole.choices[0].message.content
    assert "Paris" in text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens < 60
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_response_that_ends_itself_is_completed(running: Service) -> None:
    with running.openai() as client:
        answer = client.responses.create(
            model=MODEL, input=SENTENCE, temperature=0, max_output_tokens=60
        )
    assert answer.status == "completed"
    assert "Paris" in answer.output_text


def test_the_next_turn_is_about_the_one_before(running: Service) -> None:
    """Only the first turn says what of Italy is asked for."""
    with running.openai() as client:
        first = ask(client, TURNS[:1])
        second = ask(client, TURNS)
    assert "Rome" in second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens - 8
