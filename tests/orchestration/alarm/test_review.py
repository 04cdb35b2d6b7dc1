from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from orchestration.alarm.monitor import gold_of
from orchestration.alarm.review import HELDOUT, review, review_lines
from orchestration.cli import main
from orchestration.recipe.loading import load_recipe
from orchestration.recipe.text import resolved_toml
from tests.alarm_fakes import sensible_step, write_heldout, write_step

RECIPES = Path(__file__).parents[3] / "deploy" / "recipes"
SIZE = 40


def make_run(folder: Path, recipe: str, *overrides: str) -> Path:
    """A run before its first step."""
    folder.mkdir(exist_ok=True)
    rewards = ["rewards.0.name=proxy", "rewards.1.name=gold"]
    loaded = load_recipe(RECIPES / f"{recipe}.toml", [*rewards, *overrides])
    (folder / "recipe.toml").write_text(resolved_toml(loaded), encoding="utf-8")
    write_heldout(folder, "before", sensible_step(SIZE, seed=0, group_size=1))
    return folder


@pytest.fixture
def cheating_run(tmp_path: Path) -> Path:
    """Twelve steps, honest up to the fourth."""
    folder = make_run(tmp_path, "movie-reviews-rloo")
    for step in range(1, 13):
        cheat = " It is a masterpiece." if step > 4 else ""
        samples = [replace(sample, text=sample.text + cheat) for sample in sensible_step(SIZE, seed=step)]
        write_step(folder, step, samples)
    return folder


def test_gold_is_every_reward_that_is_recorded_and_not_trained_on() -> None:
    recipe = RECIPES / "movie-reviews-rloo.toml"
    assert gold_of(load_recipe(recipe)) == ["vader"]
    assert gold_of(load_recipe(recipe, ["rewards.1.weight=0.5"])) == []


def test_the_steps_of_a_run_are_looked_at_in_their_order(cheating_run: Path) -> None:
    seen = review(cheating_run)
    assert list(seen.records) == [str(step) for step in range(1, 13)]
    assert [step for step, alarm in seen.alarms if alarm.signal == "phrase_growth"] == ["6"]


def test_limits_are_those_of_the_recipe(cheating_run: Path) -> None:
    make_run(cheating_run, "movie-reviews-rloo", "alarm.limits.phrase_growth=none", "alarm.patience_steps=4")
    alarms = review(cheating_run).alarms
    assert "phrase_growth" not in {alarm.signal for _, alarm in alarms}
    assert {step for step, _ in alarms} == {"8"}


def test_the_table_shows_every_signal_and_at_most_eight_steps(cheating_run: Path) -> None:
    lines = list(review_lines(review(cheating_run)))
    assert lines[0].split() == [
        "signal",
        "untrained",
        "+-",
        "1",
        "3",
        "4",
        "6",
        "7",
        "9",
        "10",
        "12",
        "furthest",
    ]
    (growth,) = [line.split() for line in lines if line.startswith("phrase_growth")]
    assert growth[-2] == "1.000"
    assert any(line.startswith("step 6: phrase_growth, +") and "masterpiece" in line for line in lines)


def test_the_command_prints_the_table_and_ends_well(
    cheating_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["alarm", str(cheating_run)]) == 0
    assert "step 6: phrase_growth" in capsys.readouterr().out


def test_what_the_policy_wrote_reaches_the_terminal_without_its_escape_sequences(
    cheating_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = " \x1b]0;title\x07\x1b[2J\x9b31m It is a masterpiece."
    for step in range(5, 13):
        samples = [replace(sample, text=evil + sample.text) for sample in sensible_step(SIZE, seed=step)]
        write_step(cheating_run, step, samples)
    assert main(["alarm", str(cheating_run)]) == 0
    printed = capsys.readouterr().out
    assert "title" in printed
    assert all(char.isprintable() or char == "\n" for char in printed)


def test_a_run_without_alarms_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "movie-reviews-rloo")
    write_step(folder, 1, sensible_step(SIZE, seed=1))
    assert list(review_lines(review(folder)))[-1] == "no alarm"


def test_of_a_run_on_a_dataset_the_heldout_completions_are_looked_at(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "movie-reviews-dpo")
    write_step(folder, 1, [replace(sample, text="!" * 50) for sample in sensible_step(SIZE, seed=1)])
    after = [
        replace(sample, text="so good " * 9, kl_nats=50.0)
        for sample in sensible_step(SIZE, seed=2, group_size=1)
    ]
    write_heldout(folder, "after", after)
    seen = review(folder)
    assert list(seen.records) == [HELDOUT]
    raised = {alarm.signal for _, alarm in seen.alarms}
    assert "repetition" in raised
    assert "non_alphabetic" not in raised, "the dataset's texts are not the policy's"
    assert not raised & {"gain_per_sqrt_kl", "kl_per_token"}, "no KL was spent on this reward"


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("movie-reviews-rloo", "step-000001.jsonl: missing"),
        ("movie-reviews-dpo", "heldout-after.jsonl: missing"),
    ],
)
def test_a_run_with_nothing_to_look_at_is_bad_input(tmp_path: Path, recipe: str, sentence: str) -> None:
    folder = make_run(tmp_path, recipe)
    with pytest.raises(UserError, match=sentence):
        review(folder)


def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alarm", str(tmp_path)]) == 2
    assert "no run (no recipe.toml in it)" in capsys.readouterr().err
