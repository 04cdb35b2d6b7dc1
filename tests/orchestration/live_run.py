"""A run that can be steered over real HTTP: fake controls behind the real server, in an event loop of its own."""

import asyncio
import http.client
import json
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError, WorkerError
from orchestration.control.server import ControlServer


class FakeControls:
    """A run that does as it is told; `wait_for` holds an order up."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.state = "training"
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.wait_for: asyncio.Event | None = None
        self.waiting = threading.Event()

    def status(self) -> dict[str, Any]:
        workers = [{"name": "rollout-0", "kind": "rollout", "version": 3, "load": float("inf")}]
        return {"state": self.state, "step": 3, "steps": 8, "workers": workers, "settings": {"kl_coef": 0.1}}

    async def scale(self, sizes: Mapping[str, int]) -> None:
        self._called("scale", sizes)
        if "critic" in sizes:
            raise UserError("critic: no such kind of worker; rollout and reference are")
        if sizes.get("rollout") == 99:
            raise WorkerError("rollout-98 did not start")
        if sizes.get("rollout") == 13:
            raise ZeroDivisionError("a bug")

    async def pause(self) -> None:
        self._called("pause", None)
        if self.wait_for is not None:
            self.waiting.set()
            await self.wait_for.wait()
        self.state = "paused"

    async def resume(self) -> None:
        self._called("resume", None)
        self.state = "training"

    async def set(self, settings: Mapping[str, str]) -> None:
        self._called("set", settings)

    def _called(self, name: str, content: object) -> None:
        self.calls.append((name, content))
        self.loops.add(asyncio.get_running_loop())


@dataclass
class Served:
    """A server in a loop of its own, in a thread, as the driver would have it."""

    folder: Path
    controls: FakeControls
    loop: asyncio.AbstractEventLoop
    server: ControlServer
    port: int
    token: str

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> tuple[int, dict[str, Any]]:
        """Code and JSON of the answer. `headers` beside or instead of the right ones; None leaves one out."""
        sent: dict[str, str | None] = {
            "Authorization": f"Bearer {self.token}",
            "Host": f"localhost:{self.port}",
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        for name, value in (sent | headers | {"Content-Length": str(len(content))}).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(content)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """A run that works on the folder, until the end of the context."""
    (folder / "recipe.toml").write_text("[trainer]\nsteps = 8\n")
    controls = FakeControls()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ControlServer(folder, controls)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(20)
        said = json.loads((folder / "control.json").read_text())
        port = int(said["url"].removeprefix("http://127.0.0.1:"))
        yield Served(folder, controls, loop, server, port, said["token"])
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
