"""The server of a live run, asked over real HTTP, as strangers ask too."""

import asyncio
import http.client
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.control.server import ControlServer
from tests.orchestration.live_run import FakeControls, Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def obstinate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A run that is given no order that it may carry out: one for all tests of refusals."""
    with serving(tmp_path_factory.mktemp("run")) as served:
        yield served
        assert served.controls.calls == []


def test_each_path_is_one_of_the_controls_and_answers_with_the_status(served: Served) -> None:
    status = {
        "state": "training",
        "step": 3,
        "steps": 8,
        "workers": [{"name": "rollout-0", "kind": "rollout", "version": 3, "load": None}],
        "settings": {"kl_coef": 0.1},
    }
    assert served.ask("GET", "/status") == (200, status)
    assert served.ask("POST", "/scale", {"rollout": 2, "reward-vader": 0}) == (200, status)
    assert served.ask("POST", "/pause") == (200, status | {"state": "paused"})
    assert served.ask("POST", "/resume") == (200, status)
    assert served.ask("POST", "/set", {"kl_coef": "0.05"}) == (200, status)
    assert served.controls.calls == [
        ("scale", {"rollout": 2, "reward-vader": 0}),
        ("pause", None),
        ("resume", None),
        ("set", {"kl_coef": "0.05"}),
    ]
    assert served.controls.loops == {served.loop}


def test_what_the_run_finds_wrong_is_the_answer(served: Served) -> None:
    for kind, number, code, said in [
        ("critic", 1, 422, "critic: no such kind of worker; rollout and reference are"),
        ("rollout", 99, 503, "rollout-98 did not start"),
        ("rollout", 13, 500, "ZeroDivisionError: a bug"),
    ]:
        assert served.ask("POST", "/scale", {kind: number}) == (code, {"error": said})
    assert served.ask("GET", "/status")[0] == 200


@pytest.mark.parametrize(
    ("headers", "code", "said"),
    [
        ({"Authorization": None}, 401, "Bearer"),
        ({"Authorization": "Bearer "}, 401, "Bearer"),
        ({"Authorization": "Bearer nonsense"}, 401, "Bearer"),
        ({"Authorization": "Bearer d\xe9j\xe0"}, 401, "Bearer"),
        ({"Host": "evil.example"}, 403, "Host"),
        ({"Host": "evil.example:127.0.0.1"}, 403, "Host"),
        ({"Host": "127.0.0.1.evil.example:80"}, 403, "Host"),
        ({"Host": ""}, 403, "Host"),
        ({"Origin": "http://localhost"}, 403, "Origin"),
        ({"Origin": "null"}, 403, "Origin"),
    ],
)
def test_strangers_are_refused_everywhere(
    obstinate: Served, headers: dict[str, str | None], code: int, said: str
) -> None:
    for method, path in [("GET", "/status"), ("POST", "/pause"), ("POST", "/scale"), ("GET", "/nowhere")]:
        answered, answer = obstinate.ask(method, path, {"rollout": 2}, **headers)
        assert answered == code
        assert said in answer["error"]
    assert obstinate.controls.calls == []


def test_the_token_must_be_this_runs_and_whole(served: Served) -> None:
    for token in (served.token[:-1], served.token + "x", served.token.swapcase()):
        assert served.ask("POST", "/pause", Authorization=f"Bearer {token}")[0] == 401
    assert served.ask("POST", "/pause", Authorization=f"Basic {served.token}")[0] == 401
    assert len(served.token) >= 32
    assert served.ask("POST", "/pause", Host="127.0.0.1")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "said"),
    [
        ("GET", "/", None, 404, "Not Found"),
        ("GET", "/status/", None, 404, "Not Found"),
        ("POST", "/stop", {}, 404, "Not Found"),
        ("GET", "/pause", None, 405, "Method Not Allowed"),
        ("GET", "/scale", None, 405, "Method Not Allowed"),
        ("POST", "/status", {}, 405, "Method Not Allowed"),
        ("POST", "/scale", b"{", 400, "not JSON"),
        ("POST", "/scale", b"\xff", 400, "not JSON"),
        ("POST", "/scale", b"[" * 10_000, 400, "not JSON"),
        ("POST", "/scale", None, 400, "not JSON"),
        ("POST", "/scale", [1], 422, "JSON object"),
        ("POST", "/scale", {}, 422, "JSON object"),
        ("POST", "/scale", {"rollout": -1}, 422, "rollout = -1: must be a number of workers"),
        ("POST", "/scale", {"rollout": True}, 422, "rollout = true"),
        ("POST", "/scale", {"rollout": 1.5}, 422, "rollout = 1.5"),
        ("POST", "/scale", {"rollout": "2"}, 422, 'rollout = "2"'),
        ("POST", "/set", {"kl_coef": 0.05}, 422, "kl_coef = 0.05: must be text"),
        ("POST", "/set", b'{"kl_coef": "' + b"0" * 16_384 + b'"}', 413, "16384 bytes"),
    ],
)
def test_what_makes_no_sense_is_refused_and_reaches_nobody(
    obstinate: Served, method: str, path: str, body: Any, code: int, said: str
) -> None:
    answered, answer = obstinate.ask(method, path, body)
    assert (answered, obstinate.controls.calls) == (code, [])
    assert said in answer["error"]


def test_a_body_without_a_length_is_limited_too(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    headers = {"Authorization": f"Bearer {served.token}"}
    chunks = iter([b'{"kl_coef": "', *[b"0" * 1000] * 20, b'"}'])
    connection.request("POST", "/set", chunks, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert served.controls.calls == []


def test_an_order_that_takes_long_holds_nobody_up_and_ends_with_the_run(served: Served) -> None:
    served.controls.wait_for = asyncio.Event()
    answers: list[tuple[int, dict[str, Any]]] = []
    waiter = threading.Thread(target=lambda: answers.append(served.ask("POST", "/pause")))
    waiter.start()
    assert served.controls.waiting.wait(20)
    assert served.ask("GET", "/status")[1]["state"] == "training"
    served.run(served.server.close())
    waiter.join(20)
    assert answers == [(503, {"error": "the run ended before it had carried this out"})]


def test_the_file_is_its_owners_alone_and_goes_with_the_run(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "control.json").write_text("left by a run that was killed")
    (folder / "control.json.unfinished").write_text("this too")
    before = os.umask(0)
    try:
        with serving(folder) as served:
            file = folder / "control.json"
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            said = json.loads(file.read_text())
            assert (said["pid"], said["host"]) == (os.getpid(), socket.gethostname())
            assert sorted(path.name for path in folder.iterdir()) == ["control.json", "recipe.toml"]
            served.run(served.server.close())
            assert not file.exists()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", served.port), 20)
    finally:
        os.umask(before)


def test_close_leaves_the_file_of_a_later_run_alone(served: Served) -> None:
    (served.folder / "control.json").write_text("another run's")
    served.run(served.server.close())
    assert (served.folder / "control.json").read_text() == "another run's"


def test_it_listens_on_this_machine_only_and_each_run_has_its_own_token(served: Served) -> None:
    (served.folder / "b").mkdir()
    with serving(served.folder / "b") as other:
        assert other.token != served.token
        assert other.ask("GET", "/status", Authorization=f"Bearer {served.token}")[0] == 401
    with socket.socket() as stranger:  # would be taken if the server listened on every address
        stranger.bind(("127.0.0.2", served.port))


def test_signals_stay_with_leash(tmp_path: Path) -> None:
    async def serve() -> None:
        server = ControlServer(tmp_path, FakeControls())
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        await server.start()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        await server.close()
        await server.close()

    asyncio.run(serve())
    asyncio.run(ControlServer(tmp_path, FakeControls()).close())
