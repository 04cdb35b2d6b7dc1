"""The door through which people steer a live run: HTTP on this machine, beside the run on its event loop.

GET /status     what the run does                   POST /pause, /resume   no body
POST /scale     {"rollout": 2}: workers of a kind   POST /set              {"kl_coef": "0.05"}: settings

Every answer is JSON: the run's status, or {"error": what is wrong}. Who may read `control.json` in the run folder
may steer: it holds the address, and the token that every request must carry. Other users of this machine lack the
token. So do web pages; besides, their Origin gives them away, or a Host that is not this machine.
"""

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import UserError, WorkerError
from core.http_server import server_config
from orchestration.control.client import CONTROL_FILE
from orchestration.run_folder import jsonable

_HOST = "127.0.0.1"
"""Nobody outside this machine is served."""
_OWN_NAMES = {_HOST, "localhost"}
"""What a request may call this machine. A web page whose name was made to lead here brings its own name."""
_MAX_BODY_BYTES = 16 * 1024
"""Hundreds of settings; an order has a few."""
_GOODBYE_S = 5
"""What answers may take, once the run is over."""


class Controls(Protocol):
    """A run as the server sees it. Orders may overlap: each is a task on the run's own event loop."""

    def status(self) -> dict[str, Any]:
        """JSON-able: state, step, steps, policy_version, seconds, workers (a list of name, kind, state, version,
        num_running, restarts), settings (key: value), events (the latest, oldest first)."""

    async def scale(self, sizes: Mapping[str, int]) -> None:
        """So many workers of each kind. `UserError` for an unknown kind or a number out of range."""

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def set(self, settings: Mapping[str, str]) -> None:
        """`UserError` for a setting that may not change in flight."""


class ControlServer:
    """Serves a run's controls, and says in its folder where.

    server = ControlServer(folder, controls)
    try:
        await server.start()
        ...                     # the run
    finally:
        await server.close()    # before the event loop ends
    """

    def __init__(self, run_folder: Path, controls: Controls) -> None:
        self._file = run_folder / CONTROL_FILE
        self._token = secrets.token_urlsafe(32)
        self._text = ""
        self._server = _Server(
            server_config(_Guard(_app(controls, self._carry_out), self._token), goodbye_s=_GOODBYE_S)
        )
        self._serving: asyncio.Task[None] | None = None
        self._orders: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Serve on a free port of localhost, then write the file that says so, readable by its owner alone."""
        listener = socket.create_server((_HOST, 0))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0.01)
        url = f"http://{_HOST}:{listener.getsockname()[1]}"
        content = {"url": url, "token": self._token, "pid": os.getpid(), "host": socket.gethostname()}
        self._text = json.dumps(content, indent=2) + "\n"
        _write_private(self._file, self._text)

    async def close(self) -> None:
        """Remove the file, answer who still waits, stop serving. May be called more than once, or unstarted."""
        with contextlib.suppress(OSError):
            if self._file.read_bytes() == self._text.encode():  # else a later run's of this folder
                self._file.unlink()
        for order in self._orders:
            order.cancel()
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving
            self._serving = None

    async def _carry_out(self, order: Coroutine[Any, Any, None]) -> None:
        """Wait until the order is done. `WorkerError` if the run ends before."""
        task = asyncio.create_task(order)
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)
        await asyncio.wait([task])
        if task.cancelled():
            raise WorkerError("the run ended before it had carried this out")
        task.result()


class _Server(uvicorn.Server):
    """Leaves the signals to Leash, which ends a run in its own way."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


class _Guard:
    """Lets a request in if it names this machine, comes from no web page, and carries the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._credentials = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        credentials = headers.get("authorization", "").encode("latin-1")
        app = self._app
        if name.lower() not in _OWN_NAMES:
            app = _error(403, f"Host: must be {_HOST} or localhost")
        elif "origin" in headers:
            app = _error(403, "Origin: web pages may not steer a run")
        elif not hmac.compare_digest(credentials, self._credentials):
            app = _error(401, "Authorization: must be Bearer and the token in control.json")
        await app(scope, receive, send)


def _app(controls: Controls, carry_out: Callable[[Coroutine[Any, Any, None]], Awaitable[None]]) -> Starlette:
    """The routes. Each order is answered with the status after it."""

    async def status(request: Request) -> JSONResponse:
        return JSONResponse(jsonable(controls.status()))

    async def scale(request: Request) -> JSONResponse:
        await carry_out(controls.scale(_sizes(await _body(request))))
        return await status(request)

    async def pause(request: Request) -> JSONResponse:
        await carry_out(controls.pause())
        return await status(request)

    async def resume(request: Request) -> JSONResponse:
        await carry_out(controls.resume())
        return await status(request)

    async def set_settings(request: Request) -> JSONResponse:
        await carry_out(controls.set(_settings(await _body(request))))
        return await status(request)

    orders = {"/scale": scale, "/pause": pause, "/resume": resume, "/set": set_settings}
    app = Starlette(
        routes=[
            Route("/status", status, methods=["GET"]),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in orders.items()),
        ],
        exception_handlers={
            HTTPException: _refused,
            ClientDisconnect: _gone,
            UserError: _failed,
            WorkerError: _failed,
            Exception: _bug,
        },
    )
    app.router.redirect_slashes = False  # a path is known or unknown
    return app


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that the request brings; at most `_MAX_BODY_BYTES` of it are read."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is over {_MAX_BODY_BYTES} bytes")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(content, dict) or not content:
        raise UserError("the body must be a JSON object with at least one key")
    return content


def _sizes(body: Mapping[str, Any]) -> dict[str, int]:
    for kind, number in body.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise UserError(f"{kind} = {json.dumps(number)}: must be a number of workers, such as 2")
    return dict(body)


def _settings(body: Mapping[str, Any]) -> dict[str, str]:
    for key, value in body.items():
        if not isinstance(value, str):
            raise UserError(f'{key} = {json.dumps(value)}: must be text, such as "0.05"')
    return dict(body)


def _error(code: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, code, headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    refusal = cast(HTTPException, error)
    return _error(refusal.status_code, refusal.detail, refusal.headers)


async def _gone(request: Request, error: Exception) -> JSONResponse:
    return _error(400, "the request broke off")  # read by nobody


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _error(422 if isinstance(error, UserError) else 503, str(error))


async def _bug(request: Request, error: Exception) -> JSONResponse:
    return _error(500, f"{type(error).__name__}: {error}")  # and its traceback on the run's terminal


def _write_private(file: Path, text: str) -> None:
    """The whole file or none of it, and at no moment readable by others."""
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.unlink(missing_ok=True)  # left by a run that was killed
    descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    unfinished.rename(file)
