"""Several models behind one API: which one answers, and what each is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ingress_harness import MODEL, Service, service

SHORT = "short"
CONTEXT = 96


@pytest.fixture(scope="module")
def two(bundled_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("keys")
    with service(bundled_tokenizer, folder, further={SHORT: CONTEXT}) as running:
        yield running


def asked(running: Service) -> tuple[int, int]:
    """How many requests each model's generators have had."""
    return len(running.generators.requests), len(running.further[SHORT].requests)


def chat(running: Service, model: str, text: str = "Hello.") -> Any:
    return running.openai().chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=2
    )


def test_all_models_are_listed_the_first_one_first(two: Service) -> None:
    listed = two.openai().models.list().data
    assert [model.id for model in listed] == [MODEL, SHORT]
    found = two.openai().models.retrieve(SHORT)
    assert found.model_extra == {"parley": {"context_length": CONTEXT}}


def test_a_request_s_model_chooses(two: Service) -> None:
    for model, more in ((MODEL, (1, 0)), (SHORT, (0, 1))):
        before = asked(two)
        assert chat(two, model).model == model
        assert asked(two) == (before[0] + more[0], before[1] + more[1])


@pytest.mark.parametrize("api", ["completions", "responses"])
def test_every_api_goes_by_the_model(two: Service, api: str) -> None:
    before = asked(two)
    client = two.openai()
    reply: Any = (
        client.completions.create(model=SHORT, prompt="Once", max_tokens=2)
        if api == "completions"
        else client.responses.create(model=SHORT, input="Hello.", max_output_tokens=2)
    )
    assert reply.model == SHORT
    assert asked(two) == (before[0], before[1] + 1)


def test_a_model_that_is_not_served_is_not_found_and_those_that_are_get_named(two: Service) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat(two, "other")
    assert repr(MODEL) in missing.value.message
    assert repr(SHORT) in missing.value.message


def test_a_prompt_is_planned_for_the_context_of_its_model(two: Service) -> None:
    long = " ".join(["word"] * 200)
    assert chat(two, MODEL, long).usage.prompt_tokens > 200
    with pytest.raises(openai.BadRequestError, match=f"holds {CONTEXT} tokens"):
        chat(two, SHORT, long)


def test_tokens_are_counted_with_the_tokenizer_of_the_model(two: Service) -> None:
    with two.http() as client:
        body = {"model": SHORT, "prompt": "Hello."}
        assert client.post("/tokenize", json=body).json()["max_model_len"] == CONTEXT


def test_a_response_that_names_no_model_is_the_first_one_s(two: Service) -> None:
    with two.http() as client:
        reply = client.post("/v1/responses", json={"input": "Hello.", "max_output_tokens": 2})
        assert reply.json()["model"] == MODEL


def test_one_full_model_refuses_nobody_else(bundled_tokenizer: Path, tmp_path: Path) -> None:
    with service(bundled_tokenizer, tmp_path, further={SHORT: CONTEXT}) as running:
        running.call(lambda: setattr(running.client._rooms, "_full_until", float("inf")))
        with pytest.raises(openai.InternalServerError, match="503"):
            chat(running, MODEL)
        assert asked(running) == (0, 0)
        assert chat(running, SHORT).model == SHORT


def test_readiness_tells_of_every_model(two: Service) -> None:
    with two.http() as client:
        answer = client.get("/ready")
        assert answer.status_code == httpx.codes.OK
        assert list(answer.json()["models"]) == [MODEL, SHORT]
