"""The client, asking a live run over real HTTP, and the folders of runs that do not answer."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from core.errors import UserError, WorkerError
from orchestration.control import client as control_client
from orchestration.control.client import LiveRun, NotReachedError, last_known
from tests.orchestration.live_run import Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """The folder of a run that was killed, so that its control.json is still there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "recipe.toml").write_text("[trainer]\nsteps = 8\n")
    write_control(tmp_path, port)
    return tmp_path


def write_control(folder: Path, port: int, **changes: object) -> None:
    content = {
        "url": f"http://127.0.0.1:{port}",
        "token": "secret",
        "pid": 4321,
        "host": socket.gethostname(),
    }
    file = folder / "control.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(content | changes))


@contextmanager
def other_program(code: int, body: bytes, location: str = "") -> Iterator[tuple[int, list[str]]]:
    """Its port, and the paths that it was asked for."""
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_it_asks_and_orders_and_gets_the_status_after(served: Served) -> None:
    run = LiveRun(served.folder)
    assert run.status()["workers"][0]["name"] == "rollout-0"
    assert run.scale({"rollout": 2, "reward-vader": 0})["step"] == 3
    assert run.pause()["state"] == "paused"
    assert run.resume()["state"] == "training"
    assert run.set({"kl_coef": "0.05"})["settings"] == {"kl_coef": 0.1}
    assert served.controls.calls == [
        ("scale", {"rollout": 2, "reward-vader": 0}),
        ("pause", None),
        ("resume", None),
        ("set", {"kl_coef": "0.05"}),
    ]


def test_what_the_run_finds_wrong_is_raised_as_what_it_is(served: Served) -> None:
    with pytest.raises(UserError, match=f"^{served.folder}: critic: no such kind of worker"):
        LiveRun(served.folder).scale({"critic": 1})
    with pytest.raises(WorkerError, match=f"^{served.folder}: rollout-98 did not start"):
        LiveRun(served.folder).scale({"rollout": 99})
    with pytest.raises(WorkerError, match=f"^{served.folder}: ZeroDivisionError: a bug"):
        LiveRun(served.folder).scale({"rollout": 13})


def test_a_proxy_is_not_asked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert LiveRun(served.folder).status()["step"] == 3


def test_no_folder_and_no_run_in_it_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        LiveRun(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not the folder of a run \(no recipe.toml in it\)"):
        LiveRun(tmp_path)


def test_a_run_that_has_ended_is_said_to_and_how_to_go_on(dead: Path) -> None:
    go_on = f"leash train {dead}/recipe.toml --run {dead} --resume"
    for _ in range(2):
        with pytest.raises(NotReachedError, match="not running: it has ended or died") as raised:
            LiveRun(dead).pause()
        assert str(raised.value).endswith(go_on)
        assert raised.value.state == "not running"
        (dead / "control.json").unlink(missing_ok=True)  # the second time as if it had not been killed
    (dead / "summary.json").write_text("{}")
    with pytest.raises(NotReachedError, match="not running: it has finished") as raised:
        LiveRun(dead).pause()
    assert "--resume" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "body"),
    [(401, b'{"error": "whose token is this?"}'), (200, b"<html>"), (200, b"[]"), (404, b"nothing here")],
)
def test_another_program_at_the_port_is_no_run(dead: Path, code: int, body: bytes) -> None:
    with other_program(code, body) as (port, _):
        write_control(dead, port)
        with pytest.raises(NotReachedError, match="has ended or died"):
            LiveRun(dead).status()


def test_another_program_cannot_send_the_token_elsewhere(dead: Path) -> None:
    with (
        other_program(200, b"{}") as (thief, asked),
        other_program(302, b"{}", f"http://127.0.0.1:{thief}/") as (
            port,
            asked_first,
        ),
    ):
        write_control(dead, port)
        with pytest.raises(WorkerError, match="answered with 302"):
            LiveRun(dead).status()
    assert (asked_first, asked) == (["/status"], [])


def test_a_run_that_does_not_answer_is_named(dead: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "_ORDER_DEADLINE_S", 0.1)
    monkeypatch.setattr(control_client, "_STATUS_DEADLINE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        write_control(dead, mute.getsockname()[1])
        with pytest.raises(WorkerError, match=r"process 4321\) did not answer within 0.1 s$"):
            LiveRun(dead).status()
        with pytest.raises(WorkerError, match="within 0.1 s; it may still do what was asked"):
            LiveRun(dead).pause()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_may_open_is_refused(served: Served, mode: int) -> None:
    file = served.folder / "control.json"
    file.chmod(mode)
    with pytest.raises(UserError, match=f"mode {mode:o}.*chmod 600 {file}"):
        LiveRun(served.folder)
    file.chmod(0o600)
    assert LiveRun(served.folder).status()["step"] == 3


def test_a_run_on_another_machine_is_not_looked_for_here(dead: Path) -> None:
    with other_program(200, b"{}") as (port, asked):
        write_control(dead, port, host="node7")
        with pytest.raises(NotReachedError, match="written on node7: give this command there") as raised:
            LiveRun(dead).status()
    assert asked == []
    assert raised.value.state == "out of reach, on node7"


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", '{"url": 1}', '{"url": "http://127.0.0.1:1"}'),
        '{"url": "http://127.0.0.1:x", "token": "a", "pid": 1, "host": "b"}',
        '{"url": "http://127.0.0.1", "token": "a", "pid": 1, "host": "b"}',
    ],
)
def test_a_file_of_something_else_is_named(dead: Path, content: str) -> None:
    (dead / "control.json").write_text(content)
    with pytest.raises(UserError, match=f"{dead}/control.json: not written by Leash; remove it"):
        LiveRun(dead)


def test_the_folder_of_a_run_that_is_over_tells_how_far_it_came(tmp_path: Path) -> None:
    nothing = {"state": "s", "finished": False, "step": None, "steps": None, "checkpoint": None}
    assert last_known(tmp_path, "s") == nothing
    (tmp_path / "recipe.toml").write_text("[trainer]\nsteps = 8\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "sc')
    for name in ("step-000001", "step-000002", "step-000003.unfinished"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    known = nothing | {"step": 2, "steps": 8, "checkpoint": "step-000002"}
    assert last_known(tmp_path, "s") == known
    (tmp_path / "summary.json").write_text("{}")
    assert last_known(tmp_path, "s") == known | {"finished": True}
    (tmp_path / "metrics.jsonl").write_text("not JSON\n")
    with pytest.raises(UserError, match="metrics.jsonl: its last line is not the figures of a step"):
        last_known(tmp_path, "s")
