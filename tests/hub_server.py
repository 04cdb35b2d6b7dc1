"""A Hugging Face Hub on 127.0.0.1 with one repository at one commit: as much of it as the real client asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

NAME = "tiny-lab/tiny-1.0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
TOKEN = "hf_the_users_secret"


class HubServer:
    """What it holds, how it misbehaves, and what it was asked."""

    def __init__(self, files: Mapping[str, bytes], *, kind: str = "models") -> None:
        self.files = dict(files)
        self.kind = kind
        """`models` or `datasets`."""
        self.refusal: tuple[int, dict[str, str]] | None = None
        """Status and headers with which every request is answered."""
        self.broken: set[str] = set()
        """Files whose download breaks off in the middle."""
        self.hangs = threading.Event()
        """Once set, nobody gets an answer."""
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and authorization of each."""
        self.url = ""
        self.over = threading.Event()

    def asked_for(self, method: str = "GET") -> set[str]:
        """Files of the repository that somebody asked for."""
        marker = f"/resolve/{COMMIT}/"
        return {
            path.partition(marker)[2] for verb, path, _ in self.requests if verb == method and marker in path
        }


@contextmanager
def serving(hub: HubServer) -> Iterator[HubServer]:
    """Until the end of the context, after which nothing listens there any more."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def use_hub(hub: HubServer, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the client, which reads its environment when it is imported, to this Hub and to a cache. Waits between
    two attempts are left out."""
    from huggingface_hub import constants  # after the environment of the tests is set

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


class _Handler(BaseHTTPRequestHandler):
    served: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        """Tests read `requests`."""

    def _answer(self) -> None:
        hub, path = self.served, self.path.partition("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Authorization")))
        if hub.hangs.is_set():
            hub.over.wait(60)
            self.close_connection = True
            return
        if hub.refusal is not None:
            self._say(hub.refusal[0], b"", hub.refusal[1])
            return
        api = f"/api/{hub.kind}/{NAME}"
        prefix = "" if hub.kind == "models" else f"/{hub.kind}"
        if path in (api, f"{api}/revision/{COMMIT}"):
            self._say_json({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": f} for f in hub.files]})
        elif path == f"{api}/tree/{COMMIT}":
            self._say_json([_entry(name, content) for name, content in hub.files.items()])
        elif path.startswith(f"{prefix}/{NAME}/resolve/{COMMIT}/"):
            self._say_file(path.partition(f"/resolve/{COMMIT}/")[2])
        elif path.startswith((api, f"{prefix}/{NAME}/resolve/")):
            self._say(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._say(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _say_file(self, name: str) -> None:
        content = self.served.files.get(name)
        if content is None:
            self._say(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}
        if name in self.served.broken and self.command == "GET":
            self._say(200, content[: len(content) // 2], headers)
            self.close_connection = True
        else:
            self._say(200, content, headers)

    def _say_json(self, content: Any) -> None:
        self._say(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _say(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """As the real Hub lists a file: those that it keeps apart from git with their SHA-256."""
    entry: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
    if name.endswith((".safetensors", ".bin")):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry
