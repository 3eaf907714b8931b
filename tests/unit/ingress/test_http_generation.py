"""The generating APIs as the official client uses them, over a simulated model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from ingress_harness import MODEL, VOCAB, Service, service, settings_with, simulated

from serve_app.messages.generation import SamplingParams

ASK: list[Any] = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture(scope="module")
def running(bundled_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(
        bundled_tokenizer,
        tmp_path_factory.mktemp("home"),
        # Slow enough for a reply of hundreds of tokens to be ended before it ends itself.
        backends=[simulated(step_s=0.002)] * 2,
    ) as made:
        yield made


@pytest.fixture(scope="module")
def client(running: Service) -> Iterator[openai.OpenAI]:
    with running.openai() as made:
        yield made


def ask(client: openai.OpenAI, **given: Any) -> Any:
    options = {"max_tokens": 24, "temperature": 0, "messages": ASK} | given
    return client.chat.completions.create(model=MODEL, **options)


def test_a_chat_completion_says_what_was_generated_and_what_it_cost(
    client: openai.OpenAI, running: Service
) -> None:
    reply = ask(client)
    (choice,) = reply.choices
    assert reply.id.startswith("chatcmpl-")
    assert (reply.object, reply.model) == ("chat.completion", MODEL)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    prompt = running.generators.requests[-1].prompt
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt), 24)
    assert reply.usage.total_tokens == len(prompt) + 24
    assert reply.parley == {"turns_left_out": 0}


def test_a_stream_brings_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    *deltas, last, usage = chunks
    assert deltas[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == whole
    assert len(deltas) > 10
    assert last.choices[0].finish_reason == "length"
    assert (usage.choices, usage.usage.completion_tokens) == ([], 24)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_stream_without_usage_ends_with_done(running: Service) -> None:
    body = {"model": MODEL, "messages": ASK, "max_tokens": 3, "stream": True}
    with running.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [line for line in answer.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    assert not any("usage" in event for event in events)


async def test_the_async_client_streams_many_at_once(running: Service) -> None:
    async with running.async_openai() as client:

        async def stream(number: int) -> str:
            chunks = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Count to {number}."}],
                stream=True,
                max_tokens=16,
                temperature=0,
            )
            return "".join(
                [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
            )

        together = await asyncio.gather(*(stream(number) for number in range(8)))
        alone = [await stream(number) for number in range(8)]
    assert together == alone
    assert len(set(alone)) == 8


def test_every_sampling_parameter_reaches_the_engine(
    client: openai.OpenAI, running: Service
) -> None:
    ask(
        client,
        max_tokens=7,
        temperature=0.7,
        top_p=0.8,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"100": 2.5},
        seed=99,
        logprobs=True,
        top_logprobs=2,
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "min_tokens": 3,
            "ignore_eos": True,
            "stop_token_ids": [17],
            "priority": 5,
            "timeout": 30,
        },
    )
    request = running.generators.requests[-1]
    assert request.sampling == SamplingParams(
        max_tokens=7,
        seed=99,
        min_tokens=3,
        temperature=0.7,
        top_p=0.8,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias=((100, 2.5),),
        stop_token_ids=(17,),
        ignore_eos=True,
        logprobs=2,
    )
    assert request.priority == 5
    assert 0 < request.timeout_s < 30  # what getting there has left of it


def test_a_request_that_says_nothing_takes_the_settings_defaults(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    settings = settings_with(
        sampling={"temperature": 0.2, "top_p": 0.9}, ingress={"request_timeout_s": 50}
    )
    with (
        service(bundled_tokenizer, tmp_path, settings=settings) as running,
        running.openai() as client,
    ):
        client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2)
        client.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=2, extra_body={"timeout": 80}
        )
        first, second = running.generators.requests
    assert (first.sampling.temperature, first.sampling.top_p) == (0.2, 0.9)
    assert first.sampling.seed != second.sampling.seed
    for request in (first, second):
        assert 30 < request.timeout_s < 50  # the server's limit is the upper bound


@pytest.mark.parametrize("stream", [False, True])
def test_metadata_comes_back_with_the_reply(client: openai.OpenAI, *, stream: bool) -> None:
    answer = ask(client, max_tokens=2, metadata={"k": "v"}, stream=stream)
    first = next(iter(answer)) if stream else answer
    assert first.metadata == {"k": "v"}


def test_a_seed_gives_the_same_reply_twice(client: openai.OpenAI) -> None:
    replies = [
        ask(client, seed=seed, temperature=1).choices[0].message.content for seed in (5, 5, 6)
    ]
    assert replies[0] == replies[1] != replies[2]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_reply_and_the_generation(
    client: openai.OpenAI, running: Service, *, stream: bool
) -> None:
    whole = ask(client, max_tokens=60).choices[0].message.content
    # Somewhere inside, and across the borders of tokens.
    stop = whole[40:47]
    before = running.generated
    if stream:
        *chunks, last = ask(
            client,
            max_tokens=400,
            stop=[stop, "nowhere to be found"],
            stream=True,
            stream_options={"include_usage": True},
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason, usage = chunks[-1].choices[0].finish_reason, last.usage
    else:
        reply = ask(client, max_tokens=400, stop=stop)
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
        usage = reply.usage
    assert text == whole[: whole.index(stop)]
    assert reason == "stop"
    running.wait_until_idle()
    assert running.generated - before < 400
    # What counts are the tokens up to the one that completed the stop string.
    spelled = ask(client, max_tokens=usage.completion_tokens).choices[0].message.content
    assert stop in spelled
    shorter = ask(client, max_tokens=usage.completion_tokens - 1).choices[0].message.content
    assert stop not in shorter
    assert usage.prompt_tokens == len(running.generators.requests[-1].prompt)


@pytest.mark.parametrize("stream", [False, True])
def test_each_of_n_choices_goes_its_own_way(
    client: openai.OpenAI, running: Service, *, stream: bool
) -> None:
    given: dict[str, Any] = {"n": 3, "seed": 11, "temperature": 1}
    if stream:
        texts = ["", "", ""]
        reasons: dict[int, str] = {}
        *chunks, last = ask(client, stream=True, stream_options={"include_usage": True}, **given)
        for chunk in chunks:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        assert reasons == {0: "length", 1: "length", 2: "length"}
        usage = last.usage
    else:
        reply = ask(client, **given)
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        texts = [choice.message.content for choice in reply.choices]
        usage = reply.usage
    assert len(set(texts)) == 3
    assert texts[1] == ask(client, seed=12, temperature=1).choices[0].message.content
    # The prompt is paid once, and the replies each.
    assert usage.prompt_tokens == len(running.generators.requests[-1].prompt)
    assert usage.completion_tokens == 3 * 24


def test_the_choices_of_one_prompt_go_to_one_replica(
    client: openai.OpenAI, running: Service
) -> None:
    ask(client, n=2)
    assert running.generators.placed[-1] == running.generators.placed[-2]


def test_two_replicas_share_the_load(client: openai.OpenAI, running: Service) -> None:
    seen = len(running.generators.placed)
    for number in range(12):
        ask(client, max_tokens=1, messages=[{"role": "user", "content": f"Topic {number}"}])
    assert set(running.generators.placed[seen:]) == {"replica-0", "replica-1"}


def test_logprobs_come_with_each_token(client: openai.OpenAI) -> None:
    reply = ask(client, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert len(content) == 24
    assert all(len(entry.top_logprobs) == 3 for entry in content)
    spelled = b"".join(bytes(entry.bytes) for entry in content)
    assert spelled.decode(errors="replace") == reply.choices[0].message.content
    chunks = list(ask(client, logprobs=True, top_logprobs=3, stream=True))
    streamed = [
        entry.logprob
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == pytest.approx([entry.logprob for entry in content])


def test_the_second_turn_finds_the_first_one_in_the_cache(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Remember the number 4711, will you?"}]
    first = ask(client, messages=messages)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Which number was it?"},
    ]
    second = ask(client, messages=messages)
    cached = second.usage.prompt_tokens_details.cached_tokens
    # Whole blocks of 8 tokens.
    assert first.usage.prompt_tokens - 8 < cached < second.usage.prompt_tokens
    assert cached % 8 == 0


def test_a_completion_goes_on_with_its_prompt(client: openai.OpenAI, running: Service) -> None:
    text = "Once upon a time"
    reply = client.completions.create(
        model=MODEL, prompt=text, max_tokens=8, temperature=0, logprobs=1
    )
    (choice,) = reply.choices
    assert (reply.object, choice.finish_reason) == ("text_completion", "length")
    assert running.tokenizer.real.decode(running.generators.requests[-1].prompt) == text
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens or ()) == 8
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt=text,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == choice.text
    assert chunks[-1].usage == reply.usage


def test_several_prompts_are_all_paid_for(client: openai.OpenAI, running: Service) -> None:
    prompts = [[1, 5, 9, 12], [1, 7, 8, 9, 10, 11]]
    reply = client.completions.create(
        model=MODEL, prompt=prompts, n=2, max_tokens=5, temperature=1, seed=3
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    asked = [request.prompt for request in running.generators.requests[-4:]]
    assert asked == [tuple(prompts[0])] * 2 + [tuple(prompts[1])] * 2
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10, 20)


def test_models_can_be_listed_and_looked_up(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "parley"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_tokenize_and_detokenize_agree_with_the_prompt_of_a_chat(
    client: openai.OpenAI, running: Service
) -> None:
    with running.http() as http:
        text = http.post("/tokenize", json={"text": "Grüß Gott, 世界"}).json()
        back = http.post("/detokenize", json={"tokens": text["tokens"]}).json()
        persona = {"role": "system", "content": "Be brief."}
        chat = http.post("/tokenize", json={"messages": [persona, *ASK]}).json()
    assert back["text"] == "Grüß Gott, 世界"
    assert text["count"] == len(text["tokens"])
    assert text["max_model_len"] == 512
    ask(client, messages=[persona, *ASK], max_tokens=1)
    assert tuple(chat["tokens"]) == running.generators.requests[-1].prompt
    assert max(chat["tokens"]) < VOCAB


def test_a_stateless_response_streams_like_openais(client: openai.OpenAI) -> None:
    whole = client.responses.create(
        model=MODEL, input="Hello", instructions="Be brief.", max_output_tokens=9, temperature=0
    )
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
    with client.responses.stream(
        model=MODEL, input="Hello", instructions="Be brief.", max_output_tokens=9, temperature=0
    ) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == sorted(
        {event.sequence_number for event in events}
    )
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text


def test_a_long_conversation_drops_its_oldest_turns_and_says_how_many(
    client: openai.OpenAI, running: Service
) -> None:
    messages: list[Any] = [{"role": "system", "content": "You are a very old parrot."}]
    for number in range(40):
        messages.append({"role": "user", "content": f"Question {number} about things."})
        messages.append({"role": "assistant", "content": f"Answer {number}."})
    messages.append({"role": "user", "content": "And now?"})
    reply = ask(client, messages=messages)
    left_out = reply.parley["turns_left_out"]
    prompt = running.tokenizer.real.decode(running.generators.requests[-1].prompt)
    assert 0 < left_out < 40
    assert "very old parrot" in prompt
    assert f"Question {left_out - 1} " not in prompt
    assert f"Question {left_out} " in prompt
    assert prompt.rstrip().endswith("And now?<|im_end|>\n<|im_start|>assistant")
    (first, *_) = ask(client, messages=messages, stream=True)
    assert first.parley == {"turns_left_out": left_out}


def test_what_can_not_leave_the_prompt_must_fit(client: openai.OpenAI) -> None:
    before: list[Any] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    newest = {"role": "user", "content": "word " * 600}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, messages=[*before, newest], stream=stream)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=before * 100 + ASK, extra_body={"truncation": "disabled"})
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="word " * 600)
    assert caught.value.code == "context_length_exceeded"
