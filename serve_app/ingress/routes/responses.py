"""The responses API: turns, of a stored conversation or on their own, and what is kept of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from serve_app.api.body import parse_body
from serve_app.api.conversations import ItemsQuery
from serve_app.api.response_object import ENDED
from serve_app.api.response_queries import (
    FeedbackRequest,
    RetrieveQuery,
    deleted_response,
    feedback_object,
    input_page,
)
from serve_app.api.response_stream import response_error_event
from serve_app.api.responses import ResponseRequest
from serve_app.errors import InvalidRequest, ResponseNotFound
from serve_app.ingress.asked import Asked
from serve_app.ingress.event_stream import EventStream
from serve_app.ingress.following import Follower
from serve_app.ingress.gate import tenant_of
from serve_app.ingress.idempotency import (
    REPLAYED,
    carry_out_once,
    fingerprint_of,
    idempotency_key,
)
from serve_app.ingress.json_response import JsonResponse, accounted
from serve_app.ingress.models import ModelService
from serve_app.ingress.response_run import ResponseRun
from serve_app.ingress.runs import Runs
from serve_app.ingress.services import Services
from serve_app.ingress.stored_items import as_items
from serve_app.messages.dialogue import Item
from serve_app.routing.pools import FIRST
from serve_app.state.idempotency import in_flight
from serve_app.state.keyspace import conversation_of, new_conversation_id, new_response_id
from serve_app.telemetry.origin import named

__all__ = ["response_routes"]


def response_routes(services: Services, runs: Runs) -> APIRouter:
    """Return the responses API."""
    router = APIRouter(prefix="/v1/responses")
    depth = services.settings.ingress.max_json_depth
    stores = services.stores
    follower = Follower(stores.responses, services.settings.responses, services.owner)

    @router.post("")
    async def create_response(request: Request) -> Response:
        body = parse_body(await request.body(), ResponseRequest, max_depth=depth)
        tenant = tenant_of(request.scope)
        model = await _model(services, body, tenant)
        model.generators.check_room()
        asked = asked_by(body, tenant, stored_by_default=_stores(services), model=model.key)
        named(request=asked.response, conversation=asked.place)
        key = idempotency_key(request)
        if key is None or not asked.joins:
            return await answer(runs.start(asked))
        if not asked.stored:
            msg = "An Idempotency-Key needs the response to be stored: leave 'store' out."
            raise InvalidRequest(msg, param="store", code="invalid_value")
        claim = await stores.idempotency.claim(
            asked.tenant,
            key,
            fingerprint=await fingerprint_of(request),
            subject=asked.response,
            exclusive=False,
        )
        if claim.subject != asked.response:
            before = await _made_before(tenant, claim.subject)
            if before is not None and before["status"] != "failed":
                return _replayed(asked, before)
            # What has failed stays as its readers were told; what was not begun can be begun.
            if before is not None:
                claim = await stores.idempotency.succeed(claim, asked.response)
            asked = replace(asked, response=claim.subject, place=conversation_of(claim.subject))
            named(request=asked.response, conversation=asked.place)
            if runs.find(tenant, asked.response) is not None:  # it was begun meanwhile
                raise in_flight(asked.response)
        return await answer(runs.start(replace(asked, claim=claim.key)))

    async def _made_before(tenant: str, response: str) -> dict[str, Any] | None:
        """Return how the response ended that was made under a key, or None if there is none.

        Raises:
            IdempotencyConflict: it has not ended.
        """
        if runs.find(tenant, response) is not None:
            raise in_flight(response)
        try:
            record = await follower.record(tenant, response)
        except ResponseNotFound:
            return None
        if record["response"]["status"] not in ENDED:
            raise in_flight(response)
        return dict(record["response"])

    def _replayed(asked: Asked, response: dict[str, Any]) -> Response:
        """Return what an earlier request under the same key was answered."""
        if not asked.request.stream:
            return JsonResponse(response, headers=REPLAYED)
        stream = told(asked.tenant, response["id"], 0)
        stream.headers.update(REPLAYED)
        return stream

    def told(tenant: str, response: str, behind: int) -> EventStream:
        """Return a response's events as they were kept."""
        return EventStream(
            follower.events(tenant, response, behind),
            broken=lambda error: response_error_event(error, behind),
            close=lambda: None,
        )

    @router.get("/{response}")
    async def get_response(request: Request, response: str) -> Response:
        tenant = tenant_of(request.scope)
        query = RetrieveQuery.parse(
            request.query_params.multi_items(), request.headers.get("last-event-id")
        )
        behind = 0 if query.starting_after is None else query.starting_after + 1
        run = runs.told_here(tenant, response)
        if run is not None:
            if query.stream:
                return EventStream(
                    run.read(behind),
                    broken=lambda error: response_error_event(error, behind),
                    close=lambda: None,
                )
            return JsonResponse(run.snapshot())
        record = await follower.record(tenant, response)
        return told(tenant, response, behind) if query.stream else JsonResponse(record["response"])

    @router.delete("/{response}")
    async def delete_response(request: Request, response: str) -> Response:
        tenant = tenant_of(request.scope)
        await stores.responses.delete(tenant, response)
        if (run := runs.find(tenant, response)) is not None:
            run.end("lost")
        return JsonResponse(deleted_response(response))

    @router.post("/{response}/cancel")
    async def cancel_response(request: Request, response: str) -> Response:
        tenant = tenant_of(request.scope)

        async def cancel(_: str) -> Response:
            if (run := runs.find(tenant, response)) is not None:
                run.end("cancel")
                await run.wait()
            return JsonResponse(await follower.cancel(tenant, response))

        return await carry_out_once(
            stores.idempotency, request, response, cancel, conversation=conversation_of(response)
        )

    @router.get("/{response}/input_items")
    async def list_input_items(request: Request, response: str) -> Response:
        query = ItemsQuery.parse(request.query_params.multi_items())
        record, line = await stores.responses.input_line(tenant_of(request.scope), response)
        items = (*as_items(line), *(Item(**item) for item in record["input"]))
        return JsonResponse(
            input_page(items, after=query.after, limit=query.limit, order=query.order)
        )

    @router.post("/{response}/feedback")
    async def give_feedback(request: Request, response: str) -> Response:
        said = parse_body(await request.body(), FeedbackRequest, max_depth=depth)
        tenant = tenant_of(request.scope)

        async def keep(_: str) -> Response:
            shown = feedback_object(response, said, int(time.time()))
            await stores.responses.give_feedback(tenant, response, shown)
            return JsonResponse(shown)

        return await carry_out_once(
            stores.idempotency, request, response, keep, conversation=conversation_of(response)
        )

    return router


def asked_by(
    request: ResponseRequest, tenant: str, *, stored_by_default: bool, model: str = FIRST
) -> Asked:
    """Return what a request asks for, and where it will be kept.

    Args:
        request: as it came.
        tenant: whose it is.
        stored_by_default: whether it is kept where the request doesn't say.
        model: key of the model that answers.

    Raises:
        ConversationNotFound: what was sent can't be the id of a conversation.
        ResponseNotFound: what it continues or replaces can't be the id of a response.
        InvalidRequest: what it replaces belongs to another conversation.
    """
    place = request.place
    if request.conversation_id not in {None, place}:
        msg = "'replaces' is a response of another conversation: name one of this, or only one."
        raise InvalidRequest(msg, param="replaces", code="invalid_value")
    stored = stored_by_default if request.store is None else request.store
    if request.background and not stored:
        msg = "'background' needs the response to be stored: send \"store\": true with it."
        raise InvalidRequest(msg, param="background", code="invalid_value")
    if place is None and stored:
        place = new_conversation_id()
    return Asked(
        tenant=tenant,
        request=request,
        response=new_response_id(place),
        place=place,
        stored=stored,
        claim=None,
        created=int(time.time()),
        model=model,
    )


async def _model(services: Services, request: ResponseRequest, tenant: str) -> ModelService:
    """Return the model that answers: the request's, else the one that its conversation remembers.

    Raises:
        ModelNotFound: the request's is not served.
        StateUnavailable: Redis can't be asked for the conversation's.
    """
    models, place = services.models, request.place
    if request.model is not None or place is None or len(models) == 1:
        return models.named(request.model)
    return models.remembered(await services.stores.conversations.model(tenant, place))


async def answer(run: ResponseRun) -> Response:
    """Return what a run's own client is answered."""
    request = run.asked.request
    try:
        await run.accepted()
        if request.stream:
            return EventStream(run.read(), broken=_broken_reading, close=lambda: _leave(run))
        if request.background:
            return JsonResponse(run.snapshot())
        return accounted(await run.ended(), run.account)
    except asyncio.CancelledError:
        _leave(run)
        raise


def _leave(run: ResponseRun) -> None:
    if not run.outlives_reader:
        run.end("left")


def _broken_reading(error: Any) -> bytes:
    return response_error_event(error, 0)


def _stores(services: Services) -> bool:
    return services.settings.responses.store
