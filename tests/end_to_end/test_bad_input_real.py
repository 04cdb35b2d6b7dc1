"""Bad input to `leash train`, by subprocess: exit code 2, one clear message, and nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.leash_process import Ended, leash
from tests.end_to_end.tiny_recipe import write_tiny_recipe
from tests.tiny_models import build_tiny_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]

START_S = 60
"""For what is found before a worker starts."""
RUN_S = 150
"""For what a worker finds."""
REWARDS = "tests.end_to_end.reward_functions"


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    return write_tiny_recipe(file, "", model=tiny_model, prompts=prompts_file)


def refused(recipe: Path, tmp_path: Path, *overrides: str, deadline_s: float) -> str:
    """The one error line of a run that must end with exit code 2, leaving no process and no run behind."""
    process = leash("train", recipe, *overrides, "--run", tmp_path / "run", log=tmp_path / "log")
    ended: Ended = process.wait(deadline_s)
    assert ended.code == 2, ended.output[-4000:]
    assert process.left_behind() == []
    assert "Traceback" not in ended.output
    assert len(ended.error_lines) == 1, ended.output[-4000:]
    assert not (tmp_path / "run" / "summary.json").exists()
    return ended.error_lines[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.learning_rat=1e-5", "did you mean learner.learning_rate?"),
        ("model.path=no/such/folder", "does not exist; give the folder of a Hugging Face checkpoint"),
        ("prompts.path=no-such-file.jsonl", "no-such-file.jsonl"),
    ],
)
def test_what_is_wrong_on_paper_is_found_before_anything_starts(
    recipe: Path, tmp_path: Path, override: str, said: str
) -> None:
    assert said in refused(recipe, tmp_path, override, deadline_s=START_S)
    assert not (tmp_path / "run").exists()


def test_more_than_the_cluster_has_is_refused_instead_of_waited_for(recipe: Path, tmp_path: Path) -> None:
    error = refused(recipe, tmp_path, "rollout.resources.num_cpus=1000", deadline_s=START_S)
    assert "asks Ray for 1000.5 CPU, but the cluster has" in error
    assert not (tmp_path / "run").exists()


def test_a_malformed_line_of_a_dataset_is_named(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "The film"}\n{"prompt": "A story"\n', encoding="utf-8")
    assert f"{file}:2: " in refused(recipe, tmp_path, f"prompts.path={file}", deadline_s=START_S)


def test_a_checkpoint_of_another_architecture(recipe: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "three-layers", num_layers=3)
    shutil.copy2(tiny_model / "model.safetensors", other / "model.safetensors")  # two layers
    error = refused(recipe, tmp_path, f"model.path={other}", deadline_s=RUN_S)
    assert "another architecture" in error


def test_a_reward_model_with_another_tokenizer(recipe: Path, tiny_reward_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "reward"
    shutil.copytree(tiny_reward_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    reward = f'rewards=[{{kind = "model", name = "taste", path = "{other}"}}]'
    error = refused(recipe, tmp_path, reward, deadline_s=RUN_S)
    assert "its tokenizer is not the one of" in error


def test_a_reward_function_that_raises_ends_a_live_run(recipe: Path, tmp_path: Path) -> None:
    """What else a function can do wrong is in tests/actors/test_rewards.py."""
    override = f"rewards.0.function={REWARDS}:raises"
    error = refused(recipe, tmp_path, override, deadline_s=RUN_S)
    assert "raises raised KeyError: 'no such table'" in error
