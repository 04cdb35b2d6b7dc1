"""The door to a reward server: HTTP around a `RewardService`. Every answer is JSON, errors as {"error": why}.

POST /score         one completion        GET /health        whom one speaks to
POST /score_batch   many                  GET /openapi.json  all of this, for programs

Every request to score carries the server's token. The other two need none, so that probes can ask.
"""

import asyncio
import hmac
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from actors.reward_service.messages import (
    MAX_BODY_BYTES,
    HealthResponse,
    Problem,
    ScoreBatchRequest,
    ScoreBatchResponse,
    ScoreRequest,
    ScoreResponse,
)
from actors.reward_service.openapi import OPEN_PATHS, openapi_document
from actors.reward_service.service import QueueFull, RewardService
from core.errors import RewardError, UserError, WorkerLost, WorkerSilent
from core.http_server import server_config

RETRY_AFTER_S = 1
"""What those are told who came in vain: about a batch."""
GOODBYE_S = 10
"""For answers under way when the server is told to end."""

M = TypeVar("M", bound=BaseModel)


def make_app(service: RewardService, token: str) -> ASGIApp:
    """The server's routes, behind the token."""
    deadline_s = service.limits.deadline_s

    async def score(request: Request) -> Response:
        async with asyncio.timeout(deadline_s):
            scores = await service.score([await _body(request, ScoreRequest)])
        return _json(ScoreResponse(score=scores[0]))

    async def score_batch(request: Request) -> Response:
        async with asyncio.timeout(deadline_s):
            body = await _body(request, ScoreBatchRequest)
            scores = await service.score(body.items)
        return _json(ScoreBatchResponse(scores=scores))

    async def health(request: Request) -> Response:
        return _json(HealthResponse(reward=service.name, waiting=service.num_waiting))

    async def openapi(request: Request) -> Response:
        return JSONResponse(openapi_document(service.name))

    async def late(request: Request, error: Exception) -> Response:
        return _problem(504, str(error) or f"no score within {deadline_s:g} s", _retry_later())

    app = Starlette(
        routes=[
            Route("/score", score, methods=["POST"]),
            Route("/score_batch", score_batch, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
        exception_handlers={
            HTTPException: _refused,
            ClientDisconnect: _gone,
            ValidationError: _invalid,
            RewardError: _failed,
            UserError: _unusable,
            QueueFull: _full,
            TimeoutError: late,
            WorkerSilent: late,
            WorkerLost: _down,
            Exception: _bug,
        },
    )
    app.router.redirect_slashes = False  # a path is known or unknown
    return _Guard(app, token)


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Plain HTTP and nothing else. `server.run(sockets=[...])` returns after SIGTERM or Ctrl-C."""
    return uvicorn.Server(server_config(app, goodbye_s=GOODBYE_S))


class _Guard:
    """Lets a request in that carries the token; a wrong one opens nothing, so that clients learn of it early."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._credentials = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        needs_none = scope["path"] in OPEN_PATHS and "authorization" not in headers
        credentials = headers.get("authorization", "").encode("latin-1")
        app = self._app
        if not needs_none and not hmac.compare_digest(credentials, self._credentials):
            app = _problem(
                401, "Authorization: must be Bearer and the server's token", {"WWW-Authenticate": "Bearer"}
            )
        await app(scope, receive, send)


async def _body(request: Request, kind: type[M]) -> M:
    """The message that the request brings; at most `MAX_BODY_BYTES` of it are read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(
                413, f"the body is over {MAX_BODY_BYTES} bytes; send fewer completions at a time"
            )
    return kind.model_validate_json(bytes(body))


def _json(message: BaseModel) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def _problem(code: int, error: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(Problem(error=error).model_dump(), code, headers)


def _retry_later() -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S)}


async def _refused(request: Request, error: Exception) -> Response:
    refusal = cast(HTTPException, error)
    return _problem(refusal.status_code, refusal.detail, refusal.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return _problem(400, "the request broke off")  # read by nobody


async def _invalid(request: Request, error: Exception) -> Response:
    """Without what was sent: it may be long, and private."""
    details: list[Any] = list(cast(ValidationError, error).errors(include_url=False, include_input=False))
    found = [f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in details[:10]]
    return _problem(422, "; ".join(found))


async def _unusable(request: Request, error: Exception) -> Response:
    return _problem(422, str(error))


async def _failed(request: Request, error: Exception) -> Response:
    return _problem(500, str(error))


async def _full(request: Request, error: Exception) -> Response:
    return _problem(429, str(error), _retry_later())


async def _down(request: Request, error: Exception) -> Response:
    return _problem(503, str(error), _retry_later())


async def _bug(request: Request, error: Exception) -> Response:
    return _problem(500, f"{type(error).__name__}: {error}")  # and its traceback on the server's terminal
