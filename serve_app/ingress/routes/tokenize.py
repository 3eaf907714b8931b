"""POST /tokenize and /detokenize."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app.api.body import parse_body
from serve_app.api.tokenize import DetokenizeRequest, TokenizeRequest, detokenized, tokenized
from serve_app.ingress.json_response import JsonResponse
from serve_app.ingress.services import Services

__all__ = ["tokenize_routes"]


def tokenize_routes(services: Services) -> APIRouter:
    """Return the routes that show how the model reads text."""
    router = APIRouter()
    depth = services.settings.ingress.max_json_depth

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = parse_body(await request.body(), TokenizeRequest, max_depth=depth)
        model = services.models.named(body.model)
        source = body.source
        if isinstance(source, str):
            tokens = await model.tokenizer.encode(
                source, add_special_tokens=body.with_special_tokens
            )
        else:
            encoding = await model.tokenizer.encode_chat(
                source, add_generation_prompt=body.with_generation_prompt
            )
            tokens = encoding.tokens
        return JsonResponse(tokenized(tokens, context_length=model.info.context_length))

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = parse_body(await request.body(), DetokenizeRequest, max_depth=depth)
        model = services.models.named(body.model)
        return JsonResponse(detokenized(await model.tokenizer.decode(tuple(body.tokens))))

    return router
