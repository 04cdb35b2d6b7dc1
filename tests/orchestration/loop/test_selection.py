"""Which version of the policy did best on the held-out prompts."""

import json
from pathlib import Path

from orchestration.loop.selection import EVALUATIONS_FILE, Selection
from tests.fakes import make_completion, make_rollout


def rollouts(*scores: float) -> list:  # type: ignore[type-arg]
    return [make_rollout(make_completion(5), score=score) for score in scores]


def test_the_best_is_the_highest_mean_and_of_equals_the_earliest(tmp_path: Path) -> None:
    selection = Selection(tmp_path, saves_model=False)
    assert selection.best is None
    assert selection.add(2, rollouts(0.0, 1.0))
    assert not selection.add(4, rollouts(0.5, 0.5))
    assert selection.add(6, rollouts(0.5, 1.0))
    assert not selection.add(8, rollouts(-1.0, 1.0))
    assert selection.best is not None
    assert (selection.best["step"], selection.best["reward_mean"]) == (6, 0.75)


def test_a_resumed_run_forgets_what_comes_after_its_checkpoint(tmp_path: Path) -> None:
    first = Selection(tmp_path, saves_model=False)
    for step, score in ((2, 0.5), (4, 0.9)):
        first.add(step, rollouts(score))
    again = Selection(tmp_path, saves_model=False)
    again.resume(3)
    assert [record["step"] for record in again.records] == [2]
    written = (tmp_path / EVALUATIONS_FILE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in written] == [2], "the run may end before it evaluates again"
    assert again.add(4, rollouts(0.7))
    complete = Selection(tmp_path, saves_model=False)
    complete.resume(4)
    assert [record["reward_mean"] for record in complete.records] == [0.5, 0.7]


def test_nothing_to_resume(tmp_path: Path) -> None:
    selection = Selection(tmp_path, saves_model=False)
    selection.resume(0)
    assert selection.records == []
