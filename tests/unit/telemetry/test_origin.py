"""What work is done for: kept in a block, handed to other processes, and to none that didn't ask."""

from __future__ import annotations

import asyncio
from typing import Any

from serve_app.dialogue import deployment
from serve_app.ingress.remote import RemoteDialogue, RemoteTokenizer
from serve_app.messages.dialogue import CommitTurn, PlanTurn
from serve_app.messages.tokenization import Message
from serve_app.telemetry.origin import Origin, current, detached, named, origin_of, within

ORIGIN = Origin(request="resp_1", tenant="acme")


class Handle:
    """A deployment that keeps what it is called with."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, method: str) -> Any:
        class Method:
            async def remote(_, *args: Any, **options: Any) -> None:  # noqa: N805
                self.asked.append((method, args, options))

        return Method()


def test_a_block_works_for_its_origin_and_nothing_behind_it_does() -> None:
    assert current() is None
    with within(ORIGIN):
        named(conversation="conv_1")
        assert current() == Origin(request="resp_1", tenant="acme", conversation="conv_1")
        with within(None):
            assert current() is not None
    assert current() is None


async def test_a_detached_context_has_the_origin_and_nothing_else() -> None:
    async def seen() -> Origin | None:
        return current()

    with within(Origin(request="another")):
        context = detached(ORIGIN)
        assert list(context.values()) == [ORIGIN]
        assert await asyncio.create_task(seen(), context=context) == ORIGIN
        assert await asyncio.create_task(seen(), context=detached(None)) is None


async def test_the_ingress_tells_dialogue_and_tokenizer_what_it_calls_them_for() -> None:
    handle: Any = Handle()
    dialogue, tokenizer = RemoteDialogue(handle, timeout_s=5), RemoteTokenizer(handle, timeout_s=5)
    with within(ORIGIN):
        await dialogue.plan(PlanTurn("acme", ()))
        await dialogue.commit(CommitTurn("acme", "conv_1", "resp_1", ()))
        await tokenizer.encode("Hi")
        await tokenizer.decode((1,))
        await tokenizer.encode_chat((Message("user", "Hi"),))
    told = {
        method: options.get("origin") or origin_of(args[0])
        for method, args, options in handle.asked
    }
    assert told == dict.fromkeys(("plan", "commit", "encode", "decode", "encode_chat"), ORIGIN)


async def test_the_dialogue_tells_the_tokenizer_what_it_calls_it_for() -> None:
    handle: Any = Handle()
    tokenizer = deployment._RemoteTokenizer(handle)
    with within(ORIGIN):
        await tokenizer.encode_chat((Message("user", "Hi"),))
        await tokenizer.count(("Hi",))
    assert [options["origin"] for _, _, options in handle.asked] == [ORIGIN, ORIGIN]


def test_a_message_of_a_version_that_knew_no_origin_has_none() -> None:
    turn = PlanTurn("acme", ())
    older = PlanTurn.__new__(PlanTurn)
    # As pickle fills it with what an earlier version has sent.
    older.__setstate__(turn.__getstate__()[:-1])  # type: ignore[attr-defined,index]
    assert origin_of(older) is None
    assert older.tenant == "acme"
