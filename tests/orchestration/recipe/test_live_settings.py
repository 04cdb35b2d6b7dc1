"""What holds in which step of a run, after orders in flight and crashes."""

from pathlib import Path

import pytest

from core.errors import UserError
from orchestration.recipe.config import Recipe
from orchestration.recipe.live_settings import (
    KL_COEF,
    SETTABLE,
    Change,
    LiveSettings,
    as_note,
    journaled,
    resumed_otherwise,
    value_of,
)
from orchestration.recipe.loading import load_recipe

RECIPE = """\
name = "tiny"
model.path = "asset:model"
prompts = { kind = "jsonl", path = "prompts.jsonl" }
rewards = [{ kind = "function", name = "one", function = "a:b" }]
algorithm.kind = "rloo"
trainer = { steps = 20, prompts_per_step = 4 }
kl = { kl_coef = 0.1, controller = "adaptive", kl_target = 6.0 }
rollout.autoscale.max_workers = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.fixture
def recipe(file: Path) -> Recipe:
    return load_recipe(file)


def changed(key: str, value: str, from_step: int) -> Change:
    return Change(key=key, value=value, from_step=from_step, by="ada")


def test_every_key_that_can_be_set_is_one_of_the_recipe(recipe: Recipe) -> None:
    assert list(LiveSettings(recipe).values()) == list(SETTABLE)
    assert len({key.rpartition(".")[2] for key in SETTABLE}) == len(SETTABLE), "the last part says which"


def test_a_change_holds_from_its_step_on(recipe: Recipe) -> None:
    settings = LiveSettings(recipe)
    settings.order({"kl_target": "4", "trainer.steps": "30"}, from_step=8, by="ada")
    settings.order({"kl.kl_target": "5.5"}, from_step=12, by="ada")
    assert [settings.at(step).kl.kl_target for step in (7, 8, 11, 12, 13)] == [6.0, 4.0, 4.0, 5.5, 5.5]
    assert (settings.at(7).trainer.steps, settings.latest.trainer.steps) == (20, 30)
    assert settings.values()["kl.kl_target"] == 5.5


def test_the_learner_is_told_of_its_coefficient_at_the_step_of_the_change_alone(recipe: Recipe) -> None:
    """Afterwards it is where the adaptive controller has brought it, and a checkpoint holds that."""
    settings = LiveSettings(recipe, [changed(KL_COEF, "0.3", 8)])
    told = [settings.learner_at(step) for step in (7, 8, 9)]
    assert [config.kl_coef for config in told] == [None, 0.3, None]
    assert [config.kl_target for config in told] == [6.0, 6.0, 6.0]


def test_the_last_word_counts_also_for_steps_that_are_done_again(recipe: Recipe) -> None:
    settings = LiveSettings(recipe, [changed(KL_COEF, "0.2", 5), changed(KL_COEF, "0.3", 9)])
    settings.order({"kl_coef": "0.4"}, from_step=7, by="ada")
    assert [settings.at(step).kl.kl_coef for step in (4, 5, 6, 7, 9)] == [0.1, 0.2, 0.2, 0.4, 0.4]


def test_changes_come_back_from_the_journal(recipe: Recipe) -> None:
    change = changed("alarm.action", "pause", 3)
    assert journaled([{"text": "words for people", **as_note(change)}]) == [change]
    assert LiveSettings(recipe, [change]).at(3).alarm.action == "pause"


def test_settings_must_fit_each_other(recipe: Recipe) -> None:
    settings = LiveSettings(recipe)
    with pytest.raises(UserError, match=r"kl\.kl_target"):
        settings.order({"kl_target": "none", "kl_coef": "0.7"}, from_step=2, by="ada")
    assert settings.at(2) == recipe
    assert settings.changed() == {}


def test_what_a_resuming_recipe_says_otherwise_is_found(file: Path) -> None:
    before = load_recipe(file)
    after = load_recipe(file, ["alarm.action=stop", "deadlines.start_s=9", "trainer.checkpoint_every=3"])
    assert resumed_otherwise(before, after) == {"trainer.checkpoint_every": "3", "alarm.action": '"stop"'}
    without = load_recipe(file, ["rollout.autoscale=none"])
    assert resumed_otherwise(before, without) == {}
    assert resumed_otherwise(without, before)["rollout.autoscale.max_workers"] == "4"
    assert value_of(without, "rollout.autoscale.max_workers") is None


def test_an_order_must_fit_every_step_that_is_done_again(file: Path) -> None:
    """After a crash step 4 comes again, and kl_coef is above 0 from step 8 on alone."""
    recipe = load_recipe(file, ["kl.controller=fixed", "kl.kl_coef=0"])
    settings = LiveSettings(recipe, [changed(KL_COEF, "0.05", 8)])
    with pytest.raises(
        UserError, match="in step 4, before later changes hold: set in flight and recipe.toml"
    ):
        settings.order({"action": "raise_kl"}, from_step=4, by="ada")
    assert settings.at(4) == recipe
    settings.order({"action": "raise_kl"}, from_step=8, by="ada")
    assert settings.at(8).alarm.action == "raise_kl"
    with pytest.raises(UserError, match=r"in step 6, .* a kl_coef of 0 stays 0"):
        settings.order({"checkpoint_every": "2", "action": "raise_kl"}, from_step=6, by="ada")


def test_what_was_set_in_a_table_goes_with_it(file: Path) -> None:
    changes = [changed("rollout.autoscale.max_workers", "3", 8), changed("faults.silence_s", "9", 8)]
    settings = LiveSettings(load_recipe(file, ["rollout.autoscale=none"]), changes)
    assert settings.at(8).rollout.autoscale is None
    assert list(settings.changed()) == ["faults.silence_s"]


def test_a_recipe_that_resumes_the_run_need_not_fit_what_it_changes(file: Path) -> None:
    """The last word is said before the changes of the journal are checked."""
    journal = [changed("rollout.autoscale.grow_above", "0.2", 3)]
    resumed = load_recipe(file, ["rollout.autoscale.shrink_below=0.3", "rollout.autoscale.grow_above=0.6"])
    settings = LiveSettings(resumed, journal)
    settings.order(resumed_otherwise(load_recipe(file), resumed), from_step=9, by="ada")
    assert settings.latest == settings.at(9) == resumed
    contradicting = load_recipe(file, ["rollout.autoscale.shrink_below=0.3"])
    with pytest.raises(UserError, match="^set in flight.*shrink_below = 0.3: the number of workers would"):
        LiveSettings(contradicting, journal).order({"shrink_below": "0.3"}, from_step=9, by="ada")


def test_bounds_may_leave_out_the_number_of_workers_that_the_run_started_with(recipe: Recipe) -> None:
    settings = LiveSettings(recipe)
    settings.order({"min_workers": "2"}, from_step=8, by="ada")
    scale = settings.at(8).rollout.autoscale
    assert scale is not None
    assert (scale.min_workers, scale.max_workers) == (2, 4)
    with pytest.raises(UserError, match="min_workers = 5: no number of workers is within"):
        settings.order({"min_workers": "5"}, from_step=8, by="ada")
