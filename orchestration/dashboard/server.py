"""Serves the dashboard: until Ctrl-C, or beside a run."""

import contextlib
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from core.http_server import listen, server_config, url_of
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
    server, listener, url = _server(folders, host=host, port=port, ask_for_token=ask_for_token)
    print(url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # how one stops looking
        server.run(sockets=[listener])


@contextlib.contextmanager
def beside(folder: Path, *, host: str, port: int | None) -> Iterator[str | None]:
    """The page of a run, served by a thread of the run's own process while it lasts; its URL. No port, no page.

    Raises `UserError` for an address that cannot be had.
    """
    if port is None:
        yield None
        return
    server, listener, url = _server([folder], host=host, port=port, ask_for_token=False)
    thread = threading.Thread(target=server.run, args=([listener],), name="dashboard", daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(2 * _GOODBYE_S)


def _server(
    folders: Sequence[Path], *, host: str, port: int, ask_for_token: bool
) -> tuple[uvicorn.Server, socket.socket, str]:
    """A server, the socket that it shall listen on, and its URL, with the token if it asks for one."""
    runs = open_runs(folders)
    token = secrets.token_urlsafe(32) if ask_for_token or host not in LOCAL_HOSTS else None
    listener = listen(host, port)
    server = uvicorn.Server(
        server_config(create_app(runs, token, is_closing=lambda: server.should_exit), goodbye_s=_GOODBYE_S)
    )
    name = socket.gethostname() if host in _ANY_ADDRESS else host
    query = f"?token={token}" if token else ""
    return server, listener, f"{url_of(name, listener.getsockname()[1])}/{query}"
