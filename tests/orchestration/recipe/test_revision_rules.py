"""What a recipe names on the Hugging Face Hub: told from a folder, kept as it is, and at one commit."""

from pathlib import Path

import pytest

from core.errors import UserError
from orchestration.recipe.loading import load_recipe
from orchestration.recipe.revision_rules import unpinned
from orchestration.recipe.text import resolved_toml
from tests.recipes import MINIMAL

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = ["model.path=Qwen/Qwen2.5-0.5B-Instruct", f'model.revision="{COMMIT}"']
REWARD = '{kind = "model", name = "m", path = "lab/judge"}'


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    (tmp_path / "minimal.toml").write_text(MINIMAL)
    return tmp_path / "minimal.toml"


def test_name_and_revision_are_kept_in_the_resolved_recipe(
    minimal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(minimal, PINNED)
    assert recipe.model.path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert recipe.model.revision == COMMIT
    run = tmp_path / "run" / "recipe.toml"
    (run.parent / "Qwen" / "Qwen2.5-0.5B-Instruct").mkdir(parents=True)
    run.write_text(resolved_toml(recipe))
    monkeypatch.chdir(run.parent)
    assert load_recipe(run) == recipe


def test_without_a_revision_a_folder_that_is_there_comes_first(minimal: Path, tmp_path: Path) -> None:
    minimal.write_text(MINIMAL.replace("asset:tiny", "lab/tiny"))
    assert load_recipe(minimal).model.path == "lab/tiny"
    (tmp_path / "lab" / "tiny").mkdir(parents=True)
    assert load_recipe(minimal).model.path == str(tmp_path / "lab" / "tiny")
    assert load_recipe(minimal, ["model.revision=none"]).model.path == str(tmp_path / "lab" / "tiny")
    assert load_recipe(minimal, [f'model.revision="{COMMIT}"']).model.path == "lab/tiny"


def test_other_paths_are_no_names_on_the_hub(minimal: Path, tmp_path: Path) -> None:
    rows = '{kind = "jsonl", path = "data/rows.jsonl"}'
    recipe = load_recipe(minimal, [f"prompts={rows}", "model.path=tiny"])
    assert recipe.prompts.path == str(Path.cwd() / "data" / "rows.jsonl")  # type: ignore[union-attr]
    assert recipe.model.path == str(Path.cwd() / "tiny")


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:10], COMMIT.upper()])
@pytest.mark.parametrize(
    ("overrides", "key", "command"),
    [
        (["model.path=lab/tiny"], "model", "hf models info lab/tiny"),
        ([f"rewards=[{REWARD}]"], "rewards.0", "hf models info lab/judge"),
        (['prompts={kind = "huggingface", name = "lab/rows"}'], "prompts", "hf datasets info lab/rows"),
        (['datasets=[{kind = "huggingface", name = "squad"}]'], "datasets.0", "hf datasets info squad"),
        (
            ['pretraining={coef = 1.0, datasets = [{kind = "huggingface", name = "lab/rows"}]}'],
            "pretraining.datasets.0",
            "hf datasets info lab/rows",
        ),
        (
            ['reward_model={datasets = [{kind = "huggingface", name = "lab/rows"}]}'],
            "reward_model.datasets.0",
            "hf datasets info lab/rows",
        ),
    ],
)
def test_a_branch_a_tag_and_half_a_hash_are_refused(
    minimal: Path, overrides: list[str], key: str, command: str, revision: str
) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(minimal, [*overrides, f'{key}.revision="{revision}"'])
    assert (
        f'{key}.revision = "{revision}": must be the hash of a commit, all 40 hex digits, since a branch or a tag '
        f"may point elsewhere tomorrow; set the one that `{command}` shows as sha"
    ) in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["model.path=/models/tiny"],
            "model.revision = .*: is for models on the Hub, and model.path is /models/tiny;",
        ),
        (["model.path=asset:tiny"], 'and model.path is asset:tiny; set "none", or a name such as Qwen/'),
    ],
)
def test_a_folder_and_an_asset_have_no_revision(minimal: Path, overrides: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_recipe(minimal, [*overrides, f'model.revision="{COMMIT}"'])


def test_a_reward_model_that_the_recipe_trains_has_no_revision(minimal: Path) -> None:
    reward = f'{{kind = "model", name = "m", revision = "{COMMIT}"}}'
    with pytest.raises(
        UserError, match=r"rewards.0.revision = .* and rewards.0.path is not set; set \"none\""
    ):
        load_recipe(minimal, [f"rewards=[{reward}]", "reward_model={}"])


def test_what_a_run_would_ask_a_revision_of_is_told(minimal: Path, tmp_path: Path) -> None:
    rows = f'{{kind = "huggingface", name = "{tmp_path}"}}, {{kind = "huggingface", name = "lab/rows"}}'
    overrides = ["model.path=lab/tiny", f"rewards=[{REWARD}]", f"datasets=[{rows}]", "algorithm.kind=sft"]
    recipe = load_recipe(minimal, overrides)
    assert list(unpinned(recipe)) == [
        "model.path = lab/tiny",
        "rewards.0.path = lab/judge",
        "datasets.1.name = lab/rows",
    ]
    assert list(unpinned(load_recipe(minimal, PINNED))) == []
