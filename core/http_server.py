"""How Leash serves HTTP: plainly, quietly, and no longer than it should once it is to end."""

import socket

import uvicorn
from starlette.types import ASGIApp

from core.errors import UserError

BACKLOG = 1024
"""Connections that wait to be taken."""


def server_config(app: ASGIApp, *, goodbye_s: int) -> uvicorn.Config:
    """Plain HTTP and nothing else; no log of its own but of errors.

    `goodbye_s`: what answers may take, once the server is to end, to reach those who asked.
    """
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=goodbye_s,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket at --host and --port, 0 for a free one. Raises `UserError` if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: cannot be opened ({reason}); choose another, or --port 0 for a free one"
        ) from error


def url_of(host: str, port: int) -> str:
    """With an IPv6 address in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
