"""Serves the dashboard until Ctrl-C."""

import contextlib
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from core.errors import UserError
from orchestration.dashboard.app import create_app
from orchestration.dashboard.guard import LOCAL_HOSTS
from orchestration.dashboard.run_view import open_runs

_GOODBYE_S = 3
"""What open streams may take to end."""
_ANY_ADDRESS = {"0.0.0.0", "::"}


def serve(
    folders: Sequence[Path],
    *,
    host: str,
    port: int,
    ask_for_token: bool = False,
) -> None:
    """Print the URL, and serve. On another address than this machine's own there is always a token.

    Raises `UserError` for a folder that is not a run's, and for an address that cannot be had.
    """
    runs = open_runs(folders)
    token = secrets.token_urlsafe(32) if ask_for_token or host not in LOCAL_HOSTS else None
    listener = _listen(host, port)
    server = uvicorn.Server(_config(create_app(runs, token, is_closing=lambda: server.should_exit)))
    name = socket.gethostname() if host in _ANY_ADDRESS else host
    query = f"?token={token}" if token else ""
    address = f"[{name}]" if ":" in name else name
    print(f"http://{address}:{listener.getsockname()[1]}/{query}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # how one stops looking
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: cannot be opened ({reason}); leave --port out for a free one"
        ) from None


def _config(app: ASGIApp) -> uvicorn.Config:
    """Plain HTTP and nothing else; no log of its own but of errors."""
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GOODBYE_S,
    )
