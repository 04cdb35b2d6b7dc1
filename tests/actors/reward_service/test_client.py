"""A run's end of a reward server: the same numbers as from the reward itself, and nothing lost on a bad day."""

import json
import math
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.config import RewardServerReward
from actors.reward_service import client
from actors.reward_service.client import HttpReward
from actors.reward_service.messages import MAX_BODY_BYTES, completion_of, request_of
from actors.reward_service.scoring_process import Outcome, outcomes_of
from actors.rewards import FunctionReward
from core.errors import RewardError, UserError
from core.messages import Completion
from tests.actors.reward_service.served import TOKEN, lengths, serving
from tests.fakes import make_completion, make_prompt


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_THE_TESTS", TOKEN)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries take no time; how long they would have been."""
    waits: list[float] = []
    monkeypatch.setattr("actors.reward_service.client.time.sleep", waits.append)
    return waits


def config_of(url: str, **others: Any) -> RewardServerReward:
    settings: dict[str, Any] = {"token_env": "TOKEN_OF_THE_TESTS", **others}
    return RewardServerReward(kind="http", name="far", url=url, **settings)


def completion(text: str, *ids: int, **columns: Any) -> Completion:
    return make_completion(*(ids or (7,)), prompt=make_prompt(3, 4, text="It is", **columns), text=text)


def user_reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Sensitive to every text and column, with numbers that are not round."""
    return [
        math.sin(sum(map(ord, prompt + text)))
        * (1 + sum(float(values[index]) for values in columns.values()))
        for index, (prompt, text) in enumerate(zip(prompts, completions, strict=True))
    ]


def test_the_score_is_the_very_number_that_the_reward_gives() -> None:
    local = FunctionReward(f"{__name__}:user_reward")
    batch = [
        completion("plain", rating=0.1),
        completion("", rating=1e-300),
        completion('Zürich\n\t\0"\\ \u2028 🎬 é', rating=1 / 3),
    ]
    with serving(lambda completions: outcomes_of(local, completions)) as served:
        far = HttpReward(config_of(served.url))
        assert far.score(batch) == local.score(batch)
        assert far.score(batch[:1]) == local.score(batch[:1])


def test_everything_that_a_reward_may_look_at_arrives() -> None:
    seen: list[Completion] = []

    def score(completions: Sequence[Completion]) -> list[Outcome]:
        seen.extend(completions)
        return lengths(completions)

    sent = completion("text", 8, 9, source="a", nested={"x": [1, 2.5, None, True]}, nothing=math.nan)
    with serving(score) as served:
        HttpReward(config_of(served.url)).score([sent])
    (arrived,) = seen
    assert arrived.prompt.text == "It is"
    assert arrived.text == "text"
    assert arrived.token_ids_T.tolist() == [3, 4, 8, 9]
    assert arrived.token_ids_T.dtype == sent.token_ids_T.dtype
    assert arrived.num_prompt_tokens == 2
    assert arrived.sampled_T.tolist() == [False, False, True, True]
    assert math.isnan(arrived.prompt.columns["nothing"])
    assert {**arrived.prompt.columns, "nothing": 0} == {**sent.prompt.columns, "nothing": 0}


def test_a_message_says_the_same_after_the_way_there() -> None:
    request = request_of(completion("text", 8, 9, a=1))
    assert request_of(completion_of(request)) == request


@pytest.mark.parametrize("column", [object(), (1, 2), b"x", {1: 2}])
def test_a_column_that_json_cannot_hold_is_an_error_and_not_something_else(column: Any) -> None:
    with serving(lengths) as served, pytest.raises(RewardError, match=r"cannot send .*\n?columns.*bad"):
        HttpReward(config_of(served.url)).score([completion("x", bad=column)])


def test_a_large_batch_is_sent_in_parts_that_the_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def score(completions: Sequence[Completion]) -> list[Outcome]:
        sizes.append(len(completions))
        return lengths(completions)

    third = MAX_BODY_BYTES // 3
    long, short = completion("x" * third), completion("y")
    with serving(score) as served:
        far = HttpReward(config_of(served.url))
        assert far.score([long] * 5 + [short]) == [third] * 5 + [1.0]
        assert far.score([short] * 600) == [1.0] * 600
        assert far.score([]) == []
    assert sizes == [2, 2, 2, 256, 256, 88]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_nothing_is_lost_while_the_server_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clients score 100 completions each, one at a time; the server is gone three times meanwhile."""
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.02)
    port = free_port()
    scores: dict[int, list[float]] = {number: [] for number in range(4)}
    up = ExitStack()
    served = up.enter_context(serving(lengths, port=port))
    far = HttpReward(config_of(served.url, retries=30))

    def score_all(number: int) -> None:
        for length in range(100):
            scores[number] += far.score([completion("x" * length)])

    threads = [threading.Thread(target=score_all, args=(number,)) for number in scores]
    for thread in threads:
        thread.start()
    for restart in range(1, 4):
        while len(scores[0]) < 20 * restart:
            time.sleep(0.002)
        up.close()
        time.sleep(0.05)
        up.enter_context(serving(lengths, port=port))
    for thread in threads:
        thread.join(60)
    up.close()
    assert scores == {number: [float(length) for length in range(100)] for number in range(4)}


Answer = tuple[int, dict[str, str], bytes]
"""Code, headers, content."""


class Script:
    """A server that answers as written, one answer after another."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[str] = []

    def __enter__(self) -> str:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer((200, {}, b"{}"))

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                script.requests.append(self.path)
                self._answer(script.answers.pop(0))

            def _answer(self, answer: Answer) -> None:
                code, headers, content = answer
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/team/"

    def __exit__(self, *error: Any) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


GOOD: Answer = (200, {}, b'{"scores": [2.5]}')


def test_it_waits_longer_each_time_and_as_long_as_the_server_says(no_waits: list[float]) -> None:
    busy = (429, {"Retry-After": "3"}, b'{"error": "full"}')
    answers: list[Answer] = [
        (503, {}, b"proxy"),
        busy,
        (502, {"Retry-After": "soon"}, b""),
        (504, {}, b""),
        GOOD,
    ]
    script = Script(*answers)
    with script as url:
        assert HttpReward(config_of(url)).score([completion("x")]) == [2.5]
    assert no_waits == [0.25, 3.0, 1.0, 2.0]
    assert script.requests == ["/team/score_batch"] * 5


def test_it_gives_up_after_the_last_try_and_says_how_many(no_waits: list[float]) -> None:
    script = Script(*[(503, {}, b'{"error": "the process died"}')] * 10)
    with script as url, pytest.raises(RewardError) as raised:
        HttpReward(config_of(url, retries=2)).score([completion("x")])
    assert len(script.requests) == 3
    assert len(no_waits) == 2
    assert "no answer in 3 tries; the last: answered 503: the process died" in str(raised.value)
    assert "reward far at http://" in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, {}, b'{"error": "f raised KeyError"}'), "answered 500: f raised KeyError"),
        ((422, {}, b"<html>"), "answered 422: b'<html>'"),
        ((302, {"Location": "http://evil"}, b""), "answered 302"),
        ((200, {}, b""), "something else than scores"),
        ((200, {}, b'{"scores": [1.0, 2.0]}'), "answered 2 scores for 1 completions"),
        ((200, {}, b'{"scores": []}'), "answered 0 scores for 1 completions"),
        ((200, {}, b'{"scores": [NaN]}'), "something else than scores"),
        ((200, {}, b'{"scores": [null]}'), "something else than scores"),
        ((200, {}, b'{"scores": ["1"]}'), "something else than scores"),
    ],
)
def test_an_answer_that_no_further_try_would_change_is_an_error_at_once(
    no_waits: list[float], answer: Answer, said: str
) -> None:
    script = Script(answer)
    with script as url, pytest.raises(RewardError, match=said):
        HttpReward(config_of(url)).score([completion("x")])
    assert no_waits == []


def test_a_wrong_token_and_an_absent_server_are_found_before_the_first_step(no_waits: list[float]) -> None:
    with serving(lengths) as served:
        with pytest.raises(UserError, match="answered 401"):
            HttpReward(config_of(served.url, token_env=None))._ask("POST", "/score_batch")
        assert no_waits == []
    with pytest.raises(UserError, match="ConnectionRefusedError"):
        HttpReward(config_of(f"http://127.0.0.1:{free_port()}", retries=1))
    assert no_waits == [0.25]


def test_a_wrong_token_is_told_when_the_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_THE_TESTS", "nonsense")
    with serving(lengths) as served, pytest.raises(UserError, match="answered 401"):
        HttpReward(config_of(served.url))


def test_the_token_comes_from_the_variable_or_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    with serving(lengths) as served:
        with pytest.raises(UserError, match="token_file cannot be read .*No such file"):
            HttpReward(config_of(served.url, token_env=None, token_file=str(file)))
        file.write_text(TOKEN + "\n")
        far = HttpReward(config_of(served.url, token_env=None, token_file=str(file)))
        assert far.score([completion("ab")]) == [2.0]
        monkeypatch.delenv("TOKEN_OF_THE_TESTS")
        with pytest.raises(UserError, match="TOKEN_OF_THE_TESTS .* is not set"):
            HttpReward(config_of(served.url))


def test_a_silent_server_is_asked_again_after_the_timeout(no_waits: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(RewardError, match="no answer in 2 tries; the last: TimeoutError"):
            HttpReward(config_of(url, timeout_s=0.1, retries=1))


@pytest.mark.parametrize(
    "url", ["localhost:8300", "ftp://host", "http://", "http://user:word@host", "http://h/?a=b", "http://h h"]
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        config_of(url)


def test_messages_are_json(tmp_path: Path) -> None:
    item = json.loads(request_of(completion("é", 8, a=1)).model_dump_json())
    assert item == {
        "prompt": "It is",
        "completion": "é",
        "prompt_token_ids": [3, 4],
        "completion_token_ids": [8],
        "columns": {"a": 1},
    }
