import random
import statistics
from pathlib import Path

import pytest

from core.errors import UserError
from orchestration.alarm.baseline import baseline_of, baseline_of_folder, spreads_of
from orchestration.alarm.profiles import profiles_of
from orchestration.alarm.samples import Sample
from orchestration.alarm.signals import habits_of
from tests.alarm_fakes import make_sample, sensible_step, write_heldout, write_step


def lengths(count: int, *, group_size: int = 1, seed: int = 0) -> list[Sample]:
    """Lengths of mean 1000 and standard deviation 100; completions of one prompt have the same."""
    choice = random.Random(seed)
    of_group = [round(choice.gauss(1000, 100)) for _ in range(count // group_size)]
    return [
        make_sample("a", group=f"{seed}-{group}", num_tokens=length)
        for group, length in enumerate(of_group)
        for _ in range(group_size)
    ]


@pytest.mark.parametrize(
    ("count", "step_size", "expected"),
    [
        (800, 50, 100 * (1 / 50 + 1 / 800) ** 0.5),
        (800, 400, 100 * (1 / 400 + 1 / 800) ** 0.5),
        (800, 800, 100 * (1 / 800 + 1 / 800) ** 0.5),  # no two parts as large as a step: scaled from halves
    ],
)
def test_the_spread_is_the_standard_error_of_a_mean(count: int, step_size: int, expected: float) -> None:
    spread = baseline_of(lengths(count), [], step_size=step_size).spreads["length"]
    assert spread.std == pytest.approx(expected, rel=0.2)
    assert spread.mean == pytest.approx(1000, abs=20)


def test_completions_of_a_prompt_that_agree_count_as_one() -> None:
    spread = baseline_of(lengths(1600, group_size=4), [], step_size=80).spreads["length"]
    assert spread.std == pytest.approx(100 * (1 / 20 + 1 / 400) ** 0.5, rel=0.2)


def test_fresh_steps_stray_by_one_standard_deviation() -> None:
    spread = baseline_of(lengths(200), [], step_size=40).spreads["length"]
    means = [
        statistics.fmean(sample.num_tokens for sample in lengths(40, seed=seed)) for seed in range(1, 200)
    ]
    strays = [(mean - spread.mean) / spread.std for mean in means]
    assert statistics.pstdev(strays) == pytest.approx(1.0, abs=0.25)


def test_the_same_completions_give_the_same_baseline() -> None:
    step = sensible_step(64, seed=0)
    assert baseline_of(step, ["gold"], step_size=32) == baseline_of(step, ["gold"], step_size=32)


def test_one_prompt_says_nothing_about_others() -> None:
    profiles = profiles_of([make_sample("a b"), make_sample("b a")])
    with pytest.raises(UserError, match="from those of one prompt: use two or more"):
        spreads_of(profiles, habits_of(profiles, []), 2)


def test_a_run_folder_holds_its_baseline(tmp_path: Path) -> None:
    step, heldout = sensible_step(32, seed=0), sensible_step(48, seed=1, group_size=1)
    write_step(tmp_path, 1, step)
    write_heldout(tmp_path, "before", heldout)
    found = baseline_of_folder(tmp_path, ["gold"])
    assert found.habits.phrases.num_texts == 80
    assert found.spreads["reference_nll"].mean == pytest.approx(3.0)
    assert found.spreads["length"].mean == pytest.approx(
        statistics.fmean(sample.num_tokens for sample in [*step, *heldout]), rel=0.02
    )
    assert found == baseline_of_folder(tmp_path, ["gold"])


@pytest.mark.parametrize("name", ["samples/step-000001.jsonl", "heldout-before.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write_step(tmp_path, 1, sensible_step(4, seed=0))
    write_heldout(tmp_path, "before", sensible_step(4, seed=1))
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing.*alarm.enabled = false"):
        baseline_of_folder(tmp_path, [])
