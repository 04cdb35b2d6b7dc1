"""What is quick to check is checked before a run's inputs, which may include minutes of training a reward model."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from actors.config import RewardFunctionReward
from core.errors import UserError
from orchestration import run, sampling
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import load_recipe
from orchestration.run_folder import RunFolder
from tests.fakes import save_tiny_tokenizer
from tests.recipes import MINIMAL

Command = Callable[[Recipe, Path], None]


@pytest.fixture(autouse=True)
def _no_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def expensive(recipe: Recipe) -> NoReturn:
        raise AssertionError("the inputs were made first")

    monkeypatch.setattr(run, "RunInputs", expensive)
    monkeypatch.setattr(sampling, "RunInputs", expensive)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    (tmp_path / "rewards.py").write_text("def length(prompts, completions): ...\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "model"
    folder.mkdir()
    save_tiny_tokenizer(folder, "good", "bad")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (folder / "model.safetensors").touch()
    (tmp_path / "tiny.toml").write_text(MINIMAL.replace("asset:tiny", str(folder)), encoding="utf-8")
    return load_recipe(tmp_path / "tiny.toml")


def train(recipe: Recipe, folder: Path, *, resume: bool = False) -> None:
    run.train(recipe, run_folder=folder, resume=resume, address=None)


def sample(recipe: Recipe, folder: Path, policy: Path | None = None) -> None:
    sampling.sample(recipe, run_folder=folder, policy=None if policy is None else str(policy), address=None)


@pytest.mark.parametrize("command", [train, sample])
def test_a_folder_that_holds_a_run_is_refused_first(recipe: Recipe, tmp_path: Path, command: Command) -> None:
    RunFolder.create(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="run: holds a run already"):
        command(recipe, tmp_path / "run")


@pytest.mark.parametrize("command", [train, sample])
def test_a_folder_that_cannot_be_is_refused_first(recipe: Recipe, tmp_path: Path, command: Command) -> None:
    with pytest.raises(UserError, match=r"tiny.toml/run: cannot be the folder of a run"):
        command(recipe, tmp_path / "tiny.toml" / "run")


def test_a_run_that_cannot_be_resumed_is_refused_first(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run: no run to resume"):
        train(recipe, tmp_path / "run", resume=True)
    RunFolder.create(recipe, tmp_path / "run")
    other = load_recipe(tmp_path / "tiny.toml", ["trainer.steps=3"])
    with pytest.raises(UserError, match="was started with other settings"):
        train(other, tmp_path / "run", resume=True)


def test_a_policy_that_cannot_be_sampled_from_is_refused_first(recipe: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with pytest.raises(UserError, match="other does not exist"):
        sample(recipe, tmp_path / "run", other)
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(UserError, match="other: no weights as safetensors"):
        sample(recipe, tmp_path / "run", other)
    (other / "model.safetensors").touch()
    save_tiny_tokenizer(other, "good", "bad", "worse")
    with pytest.raises(UserError, match="its tokenizer is not the one of"):
        sample(recipe, tmp_path / "run", other)


def test_without_a_fault_the_inputs_are_next_and_nothing_is_written(recipe: Recipe, tmp_path: Path) -> None:
    for command in (train, sample):
        with pytest.raises(AssertionError, match="the inputs were made first"):
            command(recipe, tmp_path / "runs" / "new")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [train, sample])
def test_a_mistyped_reward_function_is_refused_first(
    recipe: Recipe, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = RewardFunctionReward(kind="function", name="b", function="actors.reward_functions:vader")
    recipe = recipe.model_copy(update={"rewards": [*recipe.rewards, reward]})
    with pytest.raises(
        UserError, match=r'rewards\.\d\.function = ".*has no .vader. .there is vader_sentiment'
    ):
        command(recipe, tmp_path / "run")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")  # its nodes may have other modules
    with pytest.raises(AssertionError, match="the inputs were made first"):
        command(recipe, tmp_path / "run")
