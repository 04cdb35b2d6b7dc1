"""Recipes that build on others: what is laid over what, and which file is named when something is wrong."""

from pathlib import Path

import pytest

from core.errors import UserError
from learner.algorithm_config import GRPOConfig, PPOConfig
from orchestration.recipe.files import RecipeFile, merged
from orchestration.recipe.loading import load_recipe

BELOW = """
name = "below"
[model]
path = "models/tiny"
[prompts]
kind = "movie-reviews"
[[rewards]]
kind = "model"
name = "liked"
[algorithm]
kind = "ppo"
gae_lambda = 0.5
[learner]
learning_rate = 1e-4
[learner.lora]
rank = 4
[trainer]
steps = 2
prompts_per_step = 3
[reward_model]
num_layers = 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "below.toml").write_text(BELOW)
    return tmp_path


def above(folder: Path, text: str) -> Path:
    path = folder / "above.toml"
    path.write_text('base = "shared/below.toml"\nname = "above"\n' + text)
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        load_recipe(path, overrides)
    return str(raised.value)


def test_a_recipe_says_only_what_differs_from_its_base(folder: Path) -> None:
    recipe = load_recipe(above(folder, "[trainer]\nsteps = 7\n[learner.lora]\nalpha = 3.0\n"))
    assert (recipe.name, recipe.trainer.steps, recipe.trainer.prompts_per_step) == ("above", 7, 3)
    assert recipe.learner.learning_rate == 1e-4
    assert recipe.learner.lora is not None
    assert (recipe.learner.lora.rank, recipe.learner.lora.alpha) == (4, 3.0)


def test_a_table_of_the_same_kind_is_added_to_and_one_of_another_kind_replaced(folder: Path) -> None:
    same = load_recipe(above(folder, '[algorithm]\nkind = "ppo"\ngamma = 0.9\n')).algorithm
    assert isinstance(same, PPOConfig)
    assert (same.gae_lambda, same.gamma) == (0.5, 0.9)
    unnamed = load_recipe(above(folder, "[algorithm]\ngamma = 0.9\n")).algorithm
    assert unnamed == same
    assert isinstance(load_recipe(above(folder, '[algorithm]\nkind = "grpo"\n')).algorithm, GRPOConfig)


def test_what_is_not_a_table_is_replaced_whole() -> None:
    files = [
        RecipeFile(Path("top"), {"rewards": [{"name": "c"}], "learner": {"lora": "none"}}),
        RecipeFile(
            Path("bottom"), {"rewards": [{"name": "a"}, {"name": "b"}], "learner": {"lora": {"rank": 2}}}
        ),
    ]
    assert merged(files) == {"rewards": [{"name": "c"}], "learner": {"lora": "none"}}


def test_none_switches_off_what_the_base_has(folder: Path) -> None:
    switched_off = above(folder, '[learner]\nlora = "none"\n')
    assert load_recipe(switched_off).learner.lora is None


def test_a_base_has_a_base(folder: Path) -> None:
    middle = above(folder, "[trainer]\nsteps = 7\n")
    top = folder / "top.toml"
    top.write_text(f'base = "{middle.name}"\n[trainer]\nprompts_per_step = 5\n')
    recipe = load_recipe(top)
    assert (recipe.name, recipe.trainer.steps, recipe.trainer.prompts_per_step) == ("above", 7, 5)


def test_a_bare_name_is_one_of_the_shipped_recipes(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "movie-reviews"\nname = "mine"\n')
    assert load_recipe(path) == load_recipe("deploy/recipes/movie-reviews.toml", ["name=mine"])


def test_paths_start_at_the_folder_of_the_file_that_says_them(folder: Path) -> None:
    for start in (folder, folder / "shared"):
        (start / "models" / "tiny").mkdir(parents=True)
    assert load_recipe(above(folder, "")).model.path == str(folder / "shared" / "models" / "tiny")
    mine = above(folder, '[model]\npath = "models/tiny"\n')
    assert load_recipe(mine).model.path == str(folder / "models" / "tiny")


def test_a_complaint_names_the_file_that_says_the_value(folder: Path) -> None:
    path = above(folder, "[trainer]\nsteps = 0\n[learner]\nlr = 1.0\n")
    bottom = folder / "shared" / "below.toml"
    bottom.write_text(BELOW.replace("rank = 4", "rank = 0"))
    lines = complaint(path, "seed=-1").splitlines()
    assert any(line.startswith(f"{path}: trainer.steps = 0") for line in lines)
    assert any(line.startswith(f"{path}: learner.lr") for line in lines)
    assert any(line.startswith(f"{bottom}: learner.lora.rank = 0") for line in lines)
    assert any(line.startswith("command line: seed = -1") for line in lines)


def test_a_contradiction_names_both_files(folder: Path) -> None:
    path = above(folder, '[algorithm]\nkind = "rloo"\n')
    bottom = folder / "shared" / "below.toml"
    bottom.write_text(BELOW + "[rollout]\ngroup_size = 1\n")
    assert f"{bottom}" in complaint(path)
    assert f"{path}" in complaint(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('base = "movie-review"', "base: movie-review: no recipe has this name; did you mean movie-reviews?"),
        ('base = "gone.toml"', "gone.toml: no such file"),
        ("base = 3", 'base = 3: must be text; write it as base = "movie-reviews"'),
        ('base = "./mine.toml"', "builds on itself; name another recipe"),
    ],
)
def test_a_base_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    message = complaint(path)
    assert said in message
    assert message.startswith(str(tmp_path))
