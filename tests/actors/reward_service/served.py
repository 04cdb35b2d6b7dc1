"""A reward server on a real socket, in a thread of this process; its reward runs in this process as well."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from actors.reward_service.scoring_process import Outcome
from actors.reward_service.server import make_app, make_server
from actors.reward_service.service import Limits, RewardService
from core.http_server import listen
from core.messages import Completion

TOKEN = "a-token-of-the-tests"

Score = Callable[[Sequence[Completion]], list[Outcome]]


@dataclass
class FakeScorer:
    """Scores as told, without a process."""

    scores: Score
    vocab_size: int | None = None

    def score(self, completions: Sequence[Completion]) -> list[Outcome]:
        return self.scores(completions)


@dataclass
class Served:
    """Where the server is, and how to ask it."""

    port: int
    service: RewardService

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = TOKEN
    ) -> tuple[int, Any, dict[str, str]]:
        """(code, JSON, headers) of the answer; a body of bytes is sent as it is."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}".encode("latin-1")}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, None if body is None else content, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer, dict(response.headers)


@contextmanager
def serving(
    scores: Score, *, port: int = 0, vocab_size: int | None = None, **limits: Any
) -> Iterator[Served]:
    """A server of this reward, until the end of the context."""
    service = RewardService("length", FakeScorer(scores, vocab_size), Limits(**limits))
    server = make_server(make_app(service, TOKEN))
    with listen("127.0.0.1", port) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(listener.getsockname()[1], service)
        finally:
            server.should_exit = True
            thread.join()


def lengths(completions: Sequence[Completion]) -> list[Outcome]:
    """The simplest reward."""
    return [float(len(completion.text)) for completion in completions]
