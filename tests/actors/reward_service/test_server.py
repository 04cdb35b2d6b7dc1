"""A reward server over real sockets: what it answers to good requests, to bad ones, and to too many."""

import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from actors.reward_service.messages import MAX_BODY_BYTES, MAX_ITEMS
from actors.reward_service.scoring_process import Outcome
from core.errors import WorkerLost, WorkerSilent
from core.messages import Completion
from tests.actors.reward_service.served import Served, lengths, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(lengths) as served:
        yield served


def item(completion: str = "abc", **others: Any) -> dict[str, Any]:
    return {"prompt": "It is", "completion": completion, **others}


def test_one_completion_or_many_get_their_scores_in_order(served: Served) -> None:
    assert served.ask("POST", "/score", item("abc"))[:2] == (200, {"score": 3.0})
    items = {"items": [item("abc"), item(""), item("ab", columns={"x": [1, None]})]}
    assert served.ask("POST", "/score_batch", items)[:2] == (200, {"scores": [3.0, 0.0, 2.0]})


@pytest.mark.parametrize("token", [None, "", "nonsense", "d\xe9j\xe0"])
def test_without_the_token_nothing_is_scored(served: Served, token: str | None) -> None:
    for method, path in [("POST", "/score"), ("POST", "/score_batch"), ("GET", "/nowhere")]:
        code, answer, headers = served.ask(method, path, item(), token=token)
        assert code == 401
        assert "Bearer" in answer["error"]
        assert headers["www-authenticate"] == "Bearer"


def test_probes_need_no_token_but_a_wrong_one_is_told(served: Served) -> None:
    assert served.ask("GET", "/health", token=None)[:2] == (200, {"reward": "length", "waiting": 0})
    assert served.ask("GET", "/openapi.json", token=None)[1]["openapi"] == "3.1.0"
    assert served.ask("GET", "/health", token="nonsense")[0] == 401


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [("GET", "/nowhere", 404), ("GET", "/score", 405), ("POST", "/health", 405), ("POST", "/score/", 404)],
)
def test_unknown_paths_and_methods_are_refused_as_json(
    served: Served, method: str, path: str, code: int
) -> None:
    answered, answer, _ = served.ask(method, path)
    assert (answered, list(answer)) == (code, ["error"])


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/score", b"", "body"),
        ("/score", b"{", "body"),
        ("/score", b"[" * 100_000, "body"),
        ("/score", b'"\xff"', "body"),
        ("/score", [], "body"),
        ("/score", {"prompt": "p"}, "completion: "),
        ("/score", item(completion=None), "completion: "),  # type: ignore[arg-type]
        ("/score", item(prompt_token_ids=["1"]), "prompt_token_ids.0: "),
        ("/score", item(prompt_token_ids=[-1]), "prompt_token_ids.0: "),
        ("/score", item(completion_token_ids=[2**31]), "completion_token_ids.0: "),
        ("/score", item(colums={}), "colums: "),
        ("/score_batch", {"items": []}, "items: "),
        ("/score_batch", {"items": [item()] * (MAX_ITEMS + 1)}, "items: "),
        ("/score_batch", item(), "items: "),
    ],
)
def test_a_body_of_another_form_is_refused_with_the_place(
    served: Served, path: str, body: Any, said: str
) -> None:
    code, answer, _ = served.ask("POST", path, body)
    assert code == 422
    assert said in answer["error"]
    assert len(answer["error"]) < 1000


def test_what_was_sent_is_not_repeated_in_the_refusal(served: Served) -> None:
    assert "secret" not in served.ask("POST", "/score", {"prompt": "secret", "x": "secret"})[1]["error"]


def test_the_longest_body_passes_and_one_byte_more_does_not(served: Served) -> None:
    around = len(json.dumps(item("")))
    longest = MAX_BODY_BYTES - around
    assert served.ask("POST", "/score", item("x" * longest))[:2] == (200, {"score": float(longest)})
    code, answer, _ = served.ask("POST", "/score", item("x" * (longest + 1)))
    assert (code, answer) == (
        413,
        {"error": "the body is over 16777216 bytes; send fewer completions at a time"},
    )


class Gate:
    """A reward that scores nothing until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.seen: list[str] = []

    def score(self, completions: Sequence[Completion]) -> list[Outcome]:
        self.entered.set()
        assert self.opened.wait(20)
        self.seen += [completion.text for completion in completions]
        return lengths(completions)


def test_who_comes_when_too_much_waits_is_sent_away_and_nobody_else() -> None:
    """Four may wait. One is being scored, two wait; two more are too many, one is not."""
    gate = Gate()
    with serving(gate.score, max_waiting=4) as served, ThreadPoolExecutor() as pool:
        first = pool.submit(served.ask, "POST", "/score", item("a"))
        assert gate.entered.wait(20)
        second = pool.submit(served.ask, "POST", "/score_batch", {"items": [item("bb"), item("ccc")]})
        while served.service.num_waiting < 3:
            time.sleep(0.01)
        code, answer, headers = served.ask("POST", "/score_batch", {"items": [item(), item()]})
        assert code == 429
        assert answer == {"error": "3 completions wait already; at most 4 may"}
        assert headers["retry-after"] == "1"
        assert served.ask("GET", "/health")[1] == {"reward": "length", "waiting": 3}
        last = pool.submit(served.ask, "POST", "/score", item("dddd"))
        while served.service.num_waiting < 4:
            time.sleep(0.01)
        gate.opened.set()
        assert first.result()[:2] == (200, {"score": 1.0})
        assert second.result()[:2] == (200, {"scores": [2.0, 3.0]})
        assert last.result()[:2] == (200, {"score": 4.0})
        assert served.service.num_waiting == 0


def test_who_waits_past_the_deadline_is_told_and_what_waited_is_not_scored_any_more() -> None:
    gate = Gate()
    with serving(gate.score, deadline_s=0.3) as served, ThreadPoolExecutor() as pool:
        first = pool.submit(served.ask, "POST", "/score", item("under way"))
        assert gate.entered.wait(20)
        code, answer, headers = served.ask("POST", "/score", item("behind it"))
        assert (code, answer, headers["retry-after"]) == (504, {"error": "no score within 0.3 s"}, "1")
        assert first.result()[0] == 504
        assert served.service.num_waiting == 0
        gate.opened.set()
        assert served.ask("POST", "/score", item("after it"))[:2] == (200, {"score": 8.0})
    assert gate.seen == ["under way", "after it"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(WorkerLost("it died"), 503), (WorkerSilent("it hung"), 504), (ZeroDivisionError("a bug"), 500)],
)
def test_a_reward_that_breaks_down_is_an_error_of_the_server(error: Exception, code: int) -> None:
    def fail(completions: Sequence[Completion]) -> list[Outcome]:
        raise error

    with serving(fail) as served:
        answered, answer, headers = served.ask("POST", "/score", item())
        assert answered == code
        assert str(error) in answer["error"]
        assert ("retry-after" in headers) == (code != 500)


def test_a_completion_without_a_score_fails_its_own_request_alone() -> None:
    def score(completions: Sequence[Completion]) -> list[Outcome]:
        return ["reward function f raised" if c.text == "bad" else 1.0 for c in completions]

    with serving(score) as served:
        code, answer, _ = served.ask("POST", "/score_batch", {"items": [item("good"), item("bad")]})
        assert (code, answer) == (500, {"error": "reward function f raised"})
        assert served.ask("POST", "/score", item("good"))[:2] == (200, {"score": 1.0})


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({}, "prompt_token_ids: a reward model scores tokens"),
        (
            {"prompt_token_ids": [1], "completion_token_ids": [10]},
            "token id 10: the reward model knows those below 10",
        ),
        (
            {"prompt_token_ids": [1, 2], "completion_token_ids": [3, 4]},
            "4 tokens: .* model.max_model_len to 3",
        ),
    ],
)
def test_tokens_that_a_reward_model_cannot_take_are_refused(tokens: dict[str, Any], said: str) -> None:
    with serving(lengths, vocab_size=10, max_tokens=3) as served:
        code, answer, _ = served.ask("POST", "/score", item(**tokens))
        assert code == 422
        assert re.match(said, answer["error"])
        assert served.ask("POST", "/score", item(prompt_token_ids=[9]))[0] == 200
