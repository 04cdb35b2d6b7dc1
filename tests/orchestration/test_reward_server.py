"""`leash serve-reward` as a process of its own: what it says, what it serves, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.config import RewardServerReward
from actors.reward_service.client import HttpReward
from core.errors import UserError
from orchestration.recipe.loading import load_recipe
from orchestration.reward_server import serve_reward
from tests.fakes import make_completion

RECIPE = """
name = "tiny"
[model]
path = "models/none"
[prompts]
kind = "jsonl"
path = "none.jsonl"
[[rewards]]
kind = "function"
name = "length"
function = "their_rewards:length"
[[rewards]]
kind = "http"
name = "far"
url = "http://localhost:1"
token_file = "token"
[algorithm]
kind = "rloo"
[trainer]
steps = 2
prompts_per_step = 3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "their_rewards.py").write_text(
        "def length(prompts, completions, **columns):\n    return [len(text) / 3 for text in completions]\n"
    )
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def server(recipe: Path) -> Iterator[subprocess.Popen[str]]:
    """Neither the model nor the prompts of the recipe are on this machine: a function needs none of them."""
    arguments = [
        "serve-reward",
        str(recipe),
        "--reward",
        "length",
        "--port",
        "0",
        "--token-file",
        "new-token",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration.cli", *arguments],
        cwd=recipe.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_it_scores_until_it_is_told_to_end(server: subprocess.Popen[str], recipe: Path) -> None:
    assert server.stdout is not None
    said = server.stdout.readline()
    assert said, server.communicate()[1]
    _, name, _, url, *_, token_file = said.replace(",", "").split()
    assert (name, token_file) == ("length", "new-token")
    config = RewardServerReward(kind="http", name="far", url=url, token_file=str(recipe.parent / token_file))
    assert HttpReward(config).score([make_completion(5, text="abcd")]) == [4 / 3]
    children = psutil.Process(server.pid).children(recursive=True)
    assert children
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_its_process_does_not_outlive_a_server_that_was_killed(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    assert server.stdout.readline()
    children = psutil.Process(server.pid).children(recursive=True)
    assert children
    server.kill()
    server.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "tiny: has the rewards length, far; choose one with --reward"),
        ("lenght", "--reward lenght: tiny has no such reward; did you mean length?"),
        ("far", "--reward far: is served at http://localhost:1 already; choose a model or a function"),
    ],
)
def test_a_reward_that_cannot_be_served_is_said(recipe: Path, name: str | None, said: str) -> None:
    with pytest.raises(UserError) as raised:
        serve_reward(load_recipe(recipe), name, host="127.0.0.1", port=0, token_file=None, deadline_s=1)
    assert str(raised.value) == said


def test_a_port_that_is_taken_is_said(recipe: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="cannot be opened"):
            serve_reward(
                load_recipe(recipe), "length", host="127.0.0.1", port=port, token_file=token, deadline_s=1
            )


def test_a_token_file_is_looked_for_in_the_recipes_folder(recipe: Path) -> None:
    far = load_recipe(recipe).rewards[1]
    assert isinstance(far, RewardServerReward)
    assert far.token_file == str(recipe.parent / "token")
