"""Which processes a recipe runs, and what they ask of Ray."""

from pathlib import Path

from orchestration.cluster.placement import workers_of
from orchestration.recipe.loading import load_recipe
from tests.recipes import MANY_WORKERS


def test_every_process_of_a_recipe_has_a_name_and_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(MANY_WORKERS, encoding="utf-8")
    workers = workers_of(load_recipe(tmp_path / "tiny.toml"))
    assert {worker.name: worker.bundle for worker in workers} == {
        "learner-0": {"CPU": 2.0},
        "learner-1": {"CPU": 2.0},
        "rollout-0": {"CPU": 1.5, "GPU": 1.0},
        "rollout-1": {"CPU": 1.5, "GPU": 1.0},
        "reference-0": {"CPU": 0.25},
        "reward-length-0": {"CPU": 0.1},
        "reward-length-1": {"CPU": 0.1},
        "reward-small-0": {"CPU": 0.25},
        "reward-large-0": {"CPU": 0.25},
    }
    assert len({worker.name for worker in workers}) == len(workers)
    assert [worker.kind for worker in workers[-2:]] == ["reward-small", "reward-large"]
