"""What holds in which step of a run, after orders in flight and crashes."""

from pathlib import Path

import pytest

from core.errors import UserError
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


def changed(key: str, value: str, from_step: int) -> Change:
    return Change(key=key, value=value, from_step=from_step, by="ada")


def test_every_key_that_can_be_set_is_one_of_the_recipe(file: Path) -> None:
    assert list(LiveSettings(file).values()) == list(SETTABLE)
    assert len({key.rpartition(".")[2] for key in SETTABLE}) == len(SETTABLE), "the last part says which"


def test_a_change_holds_from_its_step_on(file: Path) -> None:
    settings = LiveSettings(file)
    settings.order({"kl_target": "4", "trainer.steps": "30"}, from_step=8, by="ada")
    settings.order({"kl.kl_target": "5.5"}, from_step=12, by="ada")
    assert [settings.at(step).kl.kl_target for step in (7, 8, 11, 12, 13)] == [6.0, 4.0, 4.0, 5.5, 5.5]
    assert (settings.at(7).trainer.steps, settings.latest.trainer.steps) == (20, 30)
    assert settings.values()["kl.kl_target"] == 5.5


def test_the_learner_is_told_of_its_coefficient_at_the_step_of_the_change_alone(file: Path) -> None:
    """Afterwards it is where the adaptive controller has brought it, and a checkpoint holds that."""
    settings = LiveSettings(file, [changed(KL_COEF, "0.3", 8)])
    told = [settings.learner_at(step) for step in (7, 8, 9)]
    assert [config.kl_coef for config in told] == [None, 0.3, None]
    assert [config.kl_target for config in told] == [6.0, 6.0, 6.0]


def test_the_last_word_counts_also_for_steps_that_are_done_again(file: Path) -> None:
    settings = LiveSettings(file, [changed(KL_COEF, "0.2", 5), changed(KL_COEF, "0.3", 9)])
    settings.order({"kl_coef": "0.4"}, from_step=7, by="ada")
    assert [settings.at(step).kl.kl_coef for step in (4, 5, 6, 7, 9)] == [0.1, 0.2, 0.2, 0.4, 0.4]


def test_changes_come_back_from_the_journal(file: Path) -> None:
    change = changed("alarm.action", "pause", 3)
    assert journaled([{"text": "words for people", **as_note(change)}]) == [change]
    assert LiveSettings(file, [change]).at(3).alarm.action == "pause"


def test_settings_must_fit_each_other(file: Path) -> None:
    settings = LiveSettings(file)
    with pytest.raises(UserError, match=r"kl\.kl_target"):
        settings.order({"kl_target": "none", "kl_coef": "0.7"}, from_step=2, by="ada")
    assert settings.at(2) == load_recipe(file)
    assert settings.changed() == {}


def test_what_a_resuming_recipe_says_otherwise_is_found(file: Path) -> None:
    before = load_recipe(file)
    after = load_recipe(file, ["alarm.action=stop", "deadlines.start_s=9", "trainer.checkpoint_every=3"])
    assert resumed_otherwise(before, after) == {"trainer.checkpoint_every": "3", "alarm.action": '"stop"'}
    assert resumed_otherwise(before, load_recipe(file, ["rollout.autoscale=none"])) == {}
    assert value_of(load_recipe(file, ["rollout.autoscale=none"]), "rollout.autoscale.max_workers") is None
