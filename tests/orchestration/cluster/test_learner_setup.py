"""What the learner takes from a recipe."""

from pathlib import Path

from orchestration.inputs import value_model_source
from orchestration.recipe.loading import load_recipe
from tests.recipes import MANY_WORKERS


def test_the_value_model_starts_from_the_reward_model_with_the_largest_weight(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(MANY_WORKERS, encoding="utf-8")
    recipe = load_recipe(tmp_path / "tiny.toml")
    paths = {"reward-small": Path("small"), "reward-large": Path("large")}
    assert value_model_source(recipe, paths) == Path("large")
    assert value_model_source(load_recipe(tmp_path / "tiny.toml", ["algorithm.kind=rloo"]), paths) is None
    from_policy = load_recipe(tmp_path / "tiny.toml", ["algorithm.value_init=policy"])
    assert value_model_source(from_policy, paths) is None
