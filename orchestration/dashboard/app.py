"""The dashboard over HTTP: a page of static files, and what it shows as JSON.

    /api/runs                                the runs, by position
    /api/stream                              what changes, as server-sent events
    /api/runs/RUN/samples                    steps that have rollouts
    /api/runs/RUN/samples/STEP               their groups, without tokens
    /api/runs/RUN/samples/STEP/GROUP         one group, token by token

RUN, STEP and GROUP are numbers: no part of a URL becomes part of a path but the number of a step. Only GET.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from core.errors import UserError
from core.sample_files import step_files
from orchestration.dashboard.guard import Guard
from orchestration.dashboard.run_view import RunView
from orchestration.dashboard.samples import groups_of_step, summary, with_tokens
from orchestration.dashboard.stream import stream
from orchestration.run_folder import jsonable

Item = TypeVar("Item")

_STATIC = Path(__file__).parent / "static"
_MAX_DIGITS = 9
"""Of a number in a URL."""


def create_app(
    runs: Sequence[RunView], token: str | None = None, is_closing: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """The guarded app. Streams end once `is_closing`."""

    def view_of(request: Request) -> RunView:
        return _at(runs, _number(request, "run"), "run")

    async def describe(request: Request) -> Response:
        return _json({"runs": [view.description() for view in runs]})

    async def follow(request: Request) -> Response:
        return StreamingResponse(stream(runs, is_closing), media_type="text/event-stream")

    async def steps(request: Request) -> Response:
        return _json({"steps": list(await asyncio.to_thread(step_files, view_of(request).folder))})

    async def groups(request: Request) -> Response:
        folder, step = view_of(request).folder, _number(request, "step")
        found = await asyncio.to_thread(groups_of_step, folder, step)
        return _json({"groups": [summary(rows) for rows in found]})

    async def group(request: Request) -> Response:
        view, step = view_of(request), _number(request, "step")
        found = await asyncio.to_thread(groups_of_step, view.folder, step)
        rows = _at(found, _number(request, "group"), "group")
        return _json(await asyncio.to_thread(with_tokens, rows, view.model, view.revision))

    app = Starlette(
        routes=[
            Route("/api/runs", describe),
            Route("/api/stream", follow),
            Route("/api/runs/{run}/samples", steps),
            Route("/api/runs/{run}/samples/{step}", groups),
            Route("/api/runs/{run}/samples/{step}/{group}", group),
            Mount("/", StaticFiles(directory=_STATIC, html=True)),
        ],
        exception_handlers={HTTPException: _refused, UserError: _damaged},
    )
    app.router.redirect_slashes = False  # a path is known or unknown
    return Guard(app, token)


def _number(request: Request, name: str) -> int:
    text = request.path_params[name]
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise HTTPException(404, f"{name}: must be a number")
    return int(text)


def _at(items: Sequence[Item], position: int, name: str) -> Item:
    if position >= len(items):
        raise HTTPException(404, f"{name} {position}: there are {len(items)}, counted from 0")
    return items[position]


def _json(content: Any) -> Response:
    return JSONResponse(jsonable(content))


async def _refused(request: Request, error: Exception) -> Response:
    refusal = cast(HTTPException, error)
    return JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)


async def _damaged(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)
