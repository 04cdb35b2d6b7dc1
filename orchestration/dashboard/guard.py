"""Who is let in, and what browsers are told to forbid a page.

On this machine's own address whoever can reach it may look; a request must name this machine, so that no web
page whose name was made to lead here reads along. With a token, which is needed on any other address, a request
must carry it: once in the URL that `leash dash` prints, then in a cookie that scripts cannot read and other sites
do not send.
"""

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_HOSTS = {"127.0.0.1", "localhost", "::1", "[::1]"}
"""What this machine is called by those on it."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer."""


class Guard:
    """Before the app. `token` None: whoever is on this machine."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that does not get through."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._token is None:
            if _name(host) in LOCAL_HOSTS:
                return None
            return _error(403, "Host: must be 127.0.0.1 or localhost; open the URL that leash dash printed")
        cookie = cookie_name(scope)
        if _is_same(_cookie(headers, cookie), self._token):
            return None
        if _is_same(_token_in_url(scope), self._token):
            # The address bar and the history are rid of the token.
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(cookie, self._token, httponly=True, samesite="strict")
            return answer
        return _error(401, "this page asks for a token; open the URL that leash dash printed")


def cookie_name(scope: Scope) -> str:
    """Cookies of a host are shared by its ports, and several dashboards may be open."""
    return f"leash_dash_{scope['server'][1]}"


def _name(host: str) -> str:
    """Without the port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _cookie(headers: Headers, name: str) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return str(cookies[name].value) if name in cookies else ""


def _token_in_url(scope: Scope) -> str:
    query: bytes = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("token", [""])[0]


def _is_same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _error(code: int, message: str) -> Response:
    return JSONResponse({"error": message}, code)
