"""Requests with an Idempotency-Key: carried out once, answered as often as they are sent."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fastapi import Request, Response

from serve_app.errors import CommitUnknown, InvalidRequest, ParleyError, StateUnavailable
from serve_app.ingress.gate import tenant_of
from serve_app.state.idempotency import Claim, IdempotencyStore

__all__ = ["REPLAYED", "carry_out_once", "fingerprint_of", "idempotency_key"]

REPLAYED = {"idempotency-replayed": "true"}
"""What an answer has that was given before."""

MAX_KEY = 255


def idempotency_key(request: Request) -> str | None:
    """Return the request's Idempotency-Key, or None.

    Raises:
        InvalidRequest: it is empty or too long.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_KEY:
        msg = f"An Idempotency-Key has 1 to {MAX_KEY} characters; a UUID is a good one."
        raise InvalidRequest(msg, param="Idempotency-Key", code="invalid_value")
    return key


async def fingerprint_of(request: Request) -> str:
    """Return what two requests have in common only if they ask for the same."""
    asked = b"\0".join((request.method.encode(), request.url.path.encode(), await request.body()))
    return hashlib.sha256(asked).hexdigest()


async def carry_out_once(
    store: IdempotencyStore,
    request: Request,
    subject: str,
    act: Callable[[str], Awaitable[Response]],
    *,
    conversation: str | None = None,
) -> Response:
    """Answer a request: by doing what it asks for, or as it was answered before.

    Args:
        store: where answers are kept.
        request: the request.
        subject: a new id of what it makes.
        act: does it; is given the id to make it under, which is an earlier one if an earlier try's
            outcome is unknown.
        conversation: id of the conversation that it is about; None if `subject` is that.

    Raises:
        ParleyError: whatever `act` raises. The key is free again then; if the outcome is unknown, for
            the same request alone.
        IdempotencyMismatch: the key was used for another request.
        IdempotencyConflict: the first request under it is still being answered.
    """
    key = idempotency_key(request)
    if key is None:
        return await act(subject)
    tenant = tenant_of(request.scope)
    claim = await store.claim(
        tenant, key, fingerprint=await fingerprint_of(request), subject=subject
    )
    if claim.answer is not None:
        status, content_type, body = claim.answer
        return Response(body, status, REPLAYED, media_type=content_type)
    try:
        async with store.held(claim):
            response = await act(claim.subject)
            await store.answered(
                tenant,
                claim,
                status=response.status_code,
                content_type=response.headers.get("content-type", "application/json"),
                body=bytes(response.body),
                conversation=conversation or claim.subject,
            )
    except BaseException as error:
        # Only a refusal says that nothing was done. After anything else whoever asks again makes the same.
        refused = isinstance(error, ParleyError) and not isinstance(
            error, CommitUnknown | StateUnavailable
        )
        await _let_go(store.free if refused else store.release, claim)
        raise
    return response


async def _let_go(how: Callable[[Claim], Awaitable[None]], claim: Claim) -> None:
    with suppress(StateUnavailable):  # its lease runs out
        await how(claim)
