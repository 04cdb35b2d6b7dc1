"""Serves the dashboard until Ctrl-C."""

import contextlib
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from core.http_server import listen, server_config
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
    listener = listen(host, port)
    server = uvicorn.Server(
        server_config(create_app(runs, token, is_closing=lambda: server.should_exit), goodbye_s=_GOODBYE_S)
    )
    name = socket.gethostname() if host in _ANY_ADDRESS else host
    query = f"?token={token}" if token else ""
    address = f"[{name}]" if ":" in name else name
    print(f"http://{address}:{listener.getsockname()[1]}/{query}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # how one stops looking
        server.run(sockets=[listener])
