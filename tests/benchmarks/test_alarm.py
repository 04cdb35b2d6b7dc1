"""The alarm benchmark over a run folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.alarm import watched_run
from core.errors import UserError
from tests.alarm_fakes import sensible_step, write_heldout, write_step
from tests.orchestration.alarm.test_review import SIZE, make_run


def test_a_folder_is_read_with_the_alarm_of_its_own_limits_and_its_golds(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "movie-reviews-rloo")
    for step in range(1, 8):
        cheat = " It is a masterpiece." if step > 4 else ""
        samples = [replace(sample, text=sample.text + cheat) for sample in sensible_step(SIZE, seed=step)]
        write_step(folder, step, samples)
    run = watched_run(folder)
    assert list(run.steps) == [1, 2, 3, 4, 5, 6, 7]
    assert run.golds == ["gold"]
    assert run.alarm_step == 6
    assert "phrase_growth" in run.signals
    assert len(run.untrained) == 2 * SIZE, "step 1 and the held-out prompts"


def test_a_run_without_steps_of_its_policy_is_bad_input(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "movie-reviews-dpo")
    write_heldout(folder, "after", sensible_step(SIZE, seed=2, group_size=1))
    with pytest.raises(UserError, match="learns from a dataset"):
        watched_run(folder)
