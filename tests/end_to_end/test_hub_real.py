"""A run whose model is on the Hub: a small one on 127.0.0.1, the real client, and all workers of a run."""

import tomllib
from pathlib import Path

import pytest

from tests.end_to_end.leash_process import leash, records
from tests.end_to_end.tiny_recipe import write_tiny_recipe
from tests.hub_server import COMMIT, NAME, HubServer, serving

pytestmark = pytest.mark.real

DEADLINE_S = 280
ON_HUB = f"""
[model]
path = "{NAME}"
revision = "{COMMIT}"
"""
CODE = {"modeling_tiny.py": b"raise AssertionError('it ran')"}


def test_a_run_starts_from_a_model_on_the_hub(tiny_model: Path, prompts_file: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path / "hub.toml", ON_HUB, model=tiny_model, prompts=prompts_file)
    run, files = tmp_path / "run", {file.name: file.read_bytes() for file in tiny_model.iterdir()}
    with serving(HubServer(files | CODE)) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        process = leash(
            *("train", recipe, "trainer.steps=1", "--run", run), log=tmp_path / "log", environment=environment
        )
        ended = process.wait(DEADLINE_S)
        fetched = [
            path.rpartition("/")[2]
            for method, path, _ in hub.requests
            if "/resolve/" in path and method == "GET"
        ]
    assert ended.code == 0, ended.output[-4000:]
    assert len(records(run)) == 1
    assert sorted(fetched) == sorted(files), "once each, and no code"
    model = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))["model"]
    assert (model["path"], model["revision"]) == (NAME, COMMIT)
    assert (run / "model" / "tokenizer.json").is_file()


def test_a_run_without_a_revision_says_which_to_add(
    tiny_model: Path, prompts_file: Path, tmp_path: Path
) -> None:
    changes = f'[model]\npath = "{NAME}"\n'
    recipe = write_tiny_recipe(tmp_path / "hub.toml", changes, model=tiny_model, prompts=prompts_file)
    with serving(HubServer({})) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        process = leash(
            "train", recipe, "--run", tmp_path / "run", log=tmp_path / "log", environment=environment
        )
        ended = process.wait(90)
    assert ended.code == 2, ended.output[-4000:]
    [line] = ended.error_lines
    assert f'add model.revision = "{COMMIT}", the newest now' in line
    assert not (tmp_path / "run").exists()
