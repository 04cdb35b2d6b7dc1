"""A run's end of a reward server: completions in, scores out, over the standard library's HTTP.

Scoring a completion twice does no harm, so whatever goes wrong on the way is tried again, and nothing is lost when
the server is started anew. A connection lasts for one request.
"""

import http.client
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from actors.config import RewardServerReward
from actors.reward_service.messages import MAX_BODY_BYTES, Problem, ScoreBatchResponse, request_of
from core.errors import RewardError, UserError
from core.messages import Completion

FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
"""Between two tries: twice as long each time."""
MAX_BATCH = 256
"""Completions of one request."""
MARGIN_BYTES = 100
"""Of a body, for what is around the completions."""
TRANSIENT = {429, 502, 503, 504}
"""Full, a proxy without a server behind it, starting, late."""


class HttpReward:
    """The reward that a server at `config.url` serves."""

    def __init__(self, config: RewardServerReward) -> None:
        """Asks the server whether it is up and knows the token. Raises `UserError`."""
        self._config = config
        self._where = urlsplit(config.url)
        self._headers = {"Content-Type": "application/json"} | _credentials(config)
        self._ask("GET", "/health")

    def score(self, completions: Sequence[Completion]) -> list[float]:
        """One score each, in their order. Raises `RewardError` after the last try, or if there can be none."""
        scores: list[float] = []
        for number, body in self._bodies(completions):
            scores += self._scores(self._ask("POST", "/score_batch", body), number)
        return scores

    def _bodies(self, completions: Sequence[Completion]) -> Iterator[tuple[int, bytes]]:
        """(number of completions, JSON of a `ScoreBatchRequest`), each short enough for the server."""
        items: list[str] = []
        size = 0
        for completion in completions:
            item = self._item(completion)
            size += len(item) + 1
            if items and (len(items) == MAX_BATCH or size > MAX_BODY_BYTES - MARGIN_BYTES):
                yield len(items), _batch(items)
                items, size = [], len(item) + 1
            items.append(item)
        if items:
            yield len(items), _batch(items)

    def _item(self, completion: Completion) -> str:
        try:
            return request_of(completion).model_dump_json(ensure_ascii=True)
        except ValueError as error:  # pydantic's: on the way into the message, or into JSON
            raise self._error(f"cannot send a completion as JSON, maybe for its columns: {error}") from error

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The content of an answer with code 200."""
        wait_s = FIRST_WAIT_S
        for tries in range(1, self._config.retries + 2):
            asked_to_wait_s = 0.0
            try:
                code, retry_after, content = self._send(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                if code == 200:
                    return content
                trouble = f"answered {code}: {_problem(content)}"
                if code not in TRANSIENT:
                    raise self._error(trouble)
                asked_to_wait_s = float(retry_after) if retry_after.isdecimal() else 0.0
            if tries <= self._config.retries:
                time.sleep(min(LONGEST_WAIT_S, max(wait_s, asked_to_wait_s)))
                wait_s *= 2
        raise self._error(
            f"no answer in {tries} tries; the last: {trouble}. "
            "See that `leash serve-reward` runs there, or raise retries"
        )

    def _send(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """(code, Retry-After or nothing, content)."""
        is_https = self._where.scheme == "https"
        kind = http.client.HTTPSConnection if is_https else http.client.HTTPConnection
        connection = kind(self._where.netloc, timeout=self._config.timeout_s)
        try:
            connection.request(method, self._where.path.rstrip("/") + path, body, self._headers)
            response = connection.getresponse()
            return response.status, response.headers.get("Retry-After", ""), response.read()
        finally:
            connection.close()

    def _scores(self, content: bytes, number: int) -> list[float]:
        try:
            scores = ScoreBatchResponse.model_validate_json(content).scores
        except ValidationError as error:
            raise self._error(f"answered something else than scores: {content[:80]!r}") from error
        if len(scores) != number or not all(map(math.isfinite, scores)):
            raise self._error(f"answered {len(scores)} scores for {number} completions")
        return scores

    def _error(self, what: str) -> RewardError:
        return RewardError(f"reward {self._config.name} at {self._config.url}: {what}")


def _batch(items: Sequence[str]) -> bytes:
    return f'{{"items":[{",".join(items)}]}}'.encode()


def _problem(content: bytes) -> str:
    try:
        return Problem.model_validate_json(content).error
    except ValidationError:
        return repr(content[:80])  # a proxy's


def _credentials(config: RewardServerReward) -> dict[str, str]:
    """The header with the token, if there is one; it is read here, where the request is made."""
    if config.token_env is not None:
        token = os.environ.get(config.token_env, "").strip()
        if not token:
            raise UserError(
                f"reward {config.name}: the environment variable {config.token_env} (token_env) is not set"
            )
    elif config.token_file is not None:
        try:
            token = Path(config.token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(
                f"reward {config.name}: token_file cannot be read ({error}); copy the server's"
            ) from error
    else:
        return {}
    return {"Authorization": f"Bearer {token}"}
