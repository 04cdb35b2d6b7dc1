"""Which processes a recipe runs, and what they ask of Ray."""

from pathlib import Path

from orchestration.placement import workers_of
from orchestration.recipe import load_recipe

RECIPE = """
name = "tiny"
[model]
path = "asset:tiny"
[prompts]
kind = "movie-reviews"
[rollout]
workers = 2
resources = { num_cpus = 1.5, num_gpus = 1.0 }
[learner]
world_size = 2
resources = { num_cpus = 2.0 }
[[rewards]]
kind = "function"
name = "length"
function = "rewards:length"
replicas = 2
[[rewards]]
kind = "model"
name = "small"
path = "small"
weight = 0.5
[algorithm]
kind = "ppo"
[trainer]
steps = 2
prompts_per_step = 4
"""


def test_every_process_of_a_recipe_has_a_name_and_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
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
    }
    assert len({worker.name for worker in workers}) == len(workers)
    assert [worker.kind for worker in workers[-2:]] == ["reward-length", "reward-small"]
