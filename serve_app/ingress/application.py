"""The ingress as an ASGI application, without Ray."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from serve_app import __version__
from serve_app.api.errors import envelope
from serve_app.errors import InvalidRequest
from serve_app.ingress.gate import Gate
from serve_app.ingress.json_response import JsonResponse
from serve_app.ingress.routes.accounts import account_routes
from serve_app.ingress.routes.chat import chat_routes
from serve_app.ingress.routes.completions import completion_routes
from serve_app.ingress.routes.conversations import conversation_routes
from serve_app.ingress.routes.profiles import profile_routes
from serve_app.ingress.routes.responses import response_routes
from serve_app.ingress.routes.service import service_routes
from serve_app.ingress.routes.tokenize import tokenize_routes
from serve_app.ingress.runs import Runs
from serve_app.ingress.services import Services
from serve_app.telemetry.outcomes import count_error

__all__ = ["build_application"]


def build_application(services: Services, runs: Runs) -> FastAPI:
    """Put the routes together behind the gate."""
    app = FastAPI(title="Parley", version=__version__, openapi_url=None)
    for routes in (
        chat_routes,
        completion_routes,
        conversation_routes,
        profile_routes,
        account_routes,
        tokenize_routes,
        service_routes,
    ):
        app.include_router(routes(services))
    app.include_router(response_routes(services, runs))

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        """Answer wrong paths and methods in the same form as everything else."""
        message = f"There is no {request.method} {request.url.path} here ({error.detail})."
        told = InvalidRequest(message, code=_CODES.get(error.status_code))
        count_error(told)
        return JsonResponse(envelope(told), status_code=error.status_code, headers=error.headers)

    app.add_middleware(
        Gate, settings=services.settings, keys=services.keys, accounts=services.accounts
    )
    return app


_CODES = {404: "unknown_path", 405: "method_not_allowed"}
