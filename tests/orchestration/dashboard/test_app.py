"""The dashboard over HTTP: who is let in, what is served, what a page is told as a run goes on."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from starlette.testclient import TestClient

from orchestration.dashboard import stream as stream_file
from orchestration.dashboard.app import create_app
from orchestration.dashboard.guard import HEADERS
from orchestration.dashboard.run_view import open_runs
from orchestration.dashboard.server import beside
from orchestration.dashboard.stream import stream
from tests.orchestration.live_run import serving
from tests.orchestration.made_up_run import MadeUpRun, row

STATIC = Path(stream_file.__file__).parent / "static"


@pytest.fixture
def run(tmp_path: Path) -> MadeUpRun:
    run = MadeUpRun(tmp_path / "runs" / "a")
    run.samples(1, [[row("This film", "is good", 1.0), row("This film", "is bad", -1.0)]])
    (tmp_path / "runs" / "secret.jsonl").write_text("secret")
    (tmp_path / "runs" / "a" / "control.json").write_text("secret")
    return run


@pytest.fixture
def client(run: MadeUpRun) -> TestClient:
    return TestClient(create_app(open_runs([run.folder])), base_url="http://localhost:4321")


@pytest.mark.parametrize("path", ["/", "/js/main.js", "/api/runs", "/api/runs/7/samples", "/nothing"])
def test_every_answer_forbids_the_page_what_it_does_not_need(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_has_neither_scripts_nor_styles_of_its_own_nor_of_others() -> None:
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*src=)", page) == []
    assert re.findall(r"<style|style=|\son\w+=|https?:|//", page) == []


@pytest.mark.parametrize(
    "file", sorted((STATIC / "js").rglob("*.js")), ids=lambda file: file.relative_to(STATIC).as_posix()
)
def test_no_text_becomes_markup_or_code(file: Path) -> None:
    source = file.read_text()
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", source)
        == []
    )
    assert len(source.splitlines()) <= 300


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/runs/0/samples/1"])
def test_nothing_but_get_is_answered(client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 405


@pytest.mark.parametrize("host", ["localhost:4321", "127.0.0.1:4321", "[::1]:4321", "LOCALHOST"])
def test_this_machine_by_its_own_names_is_let_in(client: TestClient, host: str) -> None:
    assert client.get("/api/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4321", "localhost.evil.example", "localhost:x", ""]
)
@pytest.mark.parametrize("path", ["/", "/api/runs", "/js/main.js"])
def test_another_name_that_leads_here_is_not(client: TestClient, host: str, path: str) -> None:
    assert client.get(path, headers={"Host": host}).status_code == 403


def test_a_token_is_exchanged_for_a_cookie_that_scripts_and_other_sites_do_not_get(run: MadeUpRun) -> None:
    app = create_app(open_runs([run.folder]), token="a-token")
    client = TestClient(app, base_url="http://cluster.example:80", follow_redirects=False)
    assert client.get("/").status_code == 401
    answer = client.get("/?token=a-token")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("leash_dash_80=a-token;")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/").status_code == 200
    assert client.get("/api/runs").status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", "a-token-and-more", "a-toke", "ü"])
def test_a_wrong_token_gets_nothing(run: MadeUpRun, token: str) -> None:
    client = TestClient(
        create_app(open_runs([run.folder]), token="a-token"), base_url="http://localhost:4321"
    )
    assert client.get("/api/runs", params={"token": token}).status_code == 401
    cookie = {b"Cookie": f"leash_dash_4321={token}".encode("latin-1")}
    assert client.get("/api/runs", headers=cookie).status_code == 401
    other_port = {"Cookie": "leash_dash_4322=a-token"}
    assert client.get("/api/runs", headers=other_port).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.jsonl",
        "/..%2fsecret.jsonl",
        "/%2e%2e/%2e%2e/app.py",
        "/js/../../app.py",
        "/js/%2e%2e/%2e%2e/app.py",
        "/..%5c..%5capp.py",
        "//etc/passwd",
        "/%00",
        "/api/runs/0/samples/..%2f..%2fsecret",
        "/api/runs/0/samples/../../secret",
        "/api/runs/../0/control.json",
        "/api/runs/-1/samples",
        "/api/runs/0/samples/-1",
        "/api/runs/0/samples/1e3",
        "/api/runs/0/samples/²",
        "/api/runs/0/samples/1/-1",
        f"/api/runs/0/samples/{'9' * 5000}",
        f"/api/runs/{'9' * 10}/samples",
        "/api/runs/1/samples",
        "/api/runs/0/samples/1/1",
    ],
)
def test_no_path_leads_out_of_a_run_or_to_what_is_not_there(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "secret" not in answer.text


def test_samples_go_from_steps_to_groups_to_tokens(client: TestClient) -> None:
    assert client.get("/api/runs").json()["runs"][0]["name"] == "a"
    assert client.get("/api/runs/0/samples").json() == {"steps": [1]}
    groups = client.get("/api/runs/0/samples/1").json()["groups"]
    assert [c["text"] for c in groups[0]["completions"]] == ["is good", "is bad"]
    assert "token_ids" not in groups[0]["completions"][0]
    assert client.get("/api/runs/0/samples/1/0").json()["completions"][1]["token_ids"] == [1, 2, 3, 5, 0]


def test_damaged_samples_are_one_clear_error(client: TestClient, run: MadeUpRun) -> None:
    run.text("samples/step-000002.jsonl", "{broken}\n")
    answer = client.get("/api/runs/0/samples/2")
    assert answer.status_code == 422
    assert "step-000002.jsonl:1: not a JSON object" in answer.json()["error"]


async def news(messages: AsyncIterator[str], kind: str, **content: Any) -> dict[str, Any]:
    """The next message of a kind that has this content."""
    async for message in messages:
        found = re.fullmatch(r"event: (\w+)\ndata: (.*)\n\n", message)
        if found and found[1] == kind:
            data: dict[str, Any] = json.loads(found[2], parse_constant=lambda name: pytest.fail(name))
            if content.items() <= data.items():
                return data
    raise AssertionError(f"the stream ended without {kind}")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_file, "POLL_S", 0.01)
    monkeypatch.setattr(stream_file, "STATUS_EVERY_S", 0.01)


@pytest.mark.usefixtures("often")
def test_a_page_is_told_what_is_there_and_then_what_comes(run: MadeUpRun) -> None:
    run.step(1, score_mean=0.5)

    async def follow() -> None:
        messages = stream(open_runs([run.folder]), lambda: False)
        assert [c["title"] for c in (await news(messages, "charts"))["charts"]] == ["Reward"]
        first = await news(messages, "records")
        assert (first["is_anew"], [record["step"] for record in first["rows"]]) == (True, [1])
        run.step(2, score_mean=0.6, entropy=float("nan"))
        assert [c["title"] for c in (await news(messages, "charts"))["charts"]] == ["Reward", "Entropy"]
        second = await news(messages, "records")
        assert (second["is_anew"], second["rows"][0]["entropy"]) == (False, None)
        run.event(2, "alarm", "length")
        assert (await news(messages, "events", is_anew=True))["rows"][0]["text"] == "length"

    asyncio.run(asyncio.wait_for(follow(), 20))


@pytest.mark.usefixtures("often")
def test_a_damaged_file_is_told_once_and_the_other_runs_go_on(run: MadeUpRun, tmp_path: Path) -> None:
    other = MadeUpRun(tmp_path / "b")
    other.step(1)
    run.text("metrics.jsonl", "{broken}\n")

    async def follow() -> None:
        messages = stream(open_runs([run.folder, other.folder]), lambda: False)
        problem = await news(messages, "problem")
        assert (problem["run"], problem["file"]) == (0, "records")
        assert "metrics.jsonl:1: not a JSON object" in problem["text"]
        assert (await news(messages, "records", run=1))["rows"][0]["step"] == 1
        (run.folder / "metrics.jsonl").unlink()
        assert await news(messages, "problem") == {"run": 0, "file": "records", "text": ""}

    asyncio.run(asyncio.wait_for(follow(), 20))


@pytest.mark.usefixtures("often")
def test_a_live_run_is_asked_for_its_status_and_its_end_is_noticed(tmp_path: Path) -> None:
    async def follow() -> None:
        messages = stream(open_runs([tmp_path]), lambda: False)
        with serving(tmp_path) as served:
            status = (await news(messages, "status"))["status"]
            assert (status["is_live"], status["state"]) == (True, "training")
            assert status["workers"][0]["load"] is None
            served.controls.state = "paused"
            assert (await news(messages, "status"))["status"]["state"] == "paused"
        assert (await news(messages, "status"))["status"]["is_live"] is False

    (tmp_path / "recipe.toml").write_text("")
    asyncio.run(asyncio.wait_for(follow(), 30))


@pytest.mark.usefixtures("often")
def test_a_stream_ends_when_the_server_closes(run: MadeUpRun) -> None:
    async def follow() -> list[str]:
        is_closing = iter([False, True])
        return [message async for message in stream(open_runs([run.folder]), lambda: next(is_closing))]

    assert len(asyncio.run(asyncio.wait_for(follow(), 20))) > 0


def test_a_long_run_comes_in_parts(run: MadeUpRun) -> None:
    for step in range(1, 1202):
        run.step(step)

    async def follow() -> list[tuple[bool, int]]:
        messages = stream(open_runs([run.folder]), lambda: False)
        parts = [await news(messages, "records") for _ in range(3)]
        return [(part["is_anew"], len(part["rows"])) for part in parts]

    assert asyncio.run(asyncio.wait_for(follow(), 20)) == [(True, 500), (False, 500), (False, 201)]


def test_a_run_serves_its_own_page_for_as_long_as_it_lasts(run: MadeUpRun) -> None:
    with beside(run.folder, host="127.0.0.1", port=0) as url:
        assert url is not None
        with urlopen(f"{url}api/runs", timeout=10) as response:
            assert json.load(response)
    with pytest.raises(URLError):
        urlopen(f"{url}api/runs", timeout=10)


def test_without_a_port_a_run_serves_no_page(run: MadeUpRun) -> None:
    with beside(run.folder, host="127.0.0.1", port=None) as url:
        assert url is None
