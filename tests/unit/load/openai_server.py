"""A server that speaks the APIs that users talk to, and answers everybody the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from sse_server import END, HEAD, Piece, Request, chat, chunk, event, refusal

WORDS = ["A ", "reply ", "of ", "six ", "whole ", "words."]

pause = partial(asyncio.sleep, 0.005)


def answer(request: Request) -> Sequence[Piece]:
    """Answer as each API does; words come one by one."""
    match request.method, request.path.removeprefix("/v1").split("/")[1:]:
        case "GET", ["models"]:
            return [refusal(200, {"data": [{"id": "some-model"}]})]
        case "POST", ["conversations"]:
            return [refusal(200, {"id": "conv_1"})]
        case "DELETE", ["conversations", "conv_1"]:
            return [refusal(200, {"deleted": True})]
        case "POST", ["chat", "completions"]:
            return slowly(chat(WORDS))
        case "POST", ["completions"]:
            return slowly(completion())
        case "POST", ["responses"]:
            return slowly(response())
    return [refusal(404, {"error": {"code": "not_found"}})]


def slowly(pieces: Sequence[bytes]) -> list[Piece]:
    return [one for piece in pieces for one in (pause, piece)]


def completion() -> list[bytes]:
    usage = {"prompt_tokens": 10, "completion_tokens": len(WORDS)}
    events = [event({"choices": [{"index": 0, "text": word}]}) for word in WORDS]
    events += [event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"]
    return [HEAD, *map(chunk, events), END]


def response() -> list[bytes]:
    usage = {"input_tokens": 10, "output_tokens": len(WORDS)}
    events = [{"type": "response.output_text.delta", "delta": word} for word in WORDS]
    events.append({"type": "response.completed", "response": {"usage": usage}})
    return [HEAD, *(chunk(event(body)) for body in events), END]


def refusing(share: int) -> Callable[[Request], Sequence[Piece]]:
    """Answer, but refuse every so manieth reply."""
    asked = 0

    def some(request: Request) -> Sequence[Piece]:
        nonlocal asked
        if request.path.endswith("completions"):
            asked += 1
            if asked % share == 0:
                return [refusal(503, {"error": {"code": "overloaded"}})]
        return answer(request)

    return some
