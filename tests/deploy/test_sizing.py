"""Memory of pods that follows from the recipe, and what is said where it cannot."""

from pathlib import Path

import pytest

from orchestration import cli
from orchestration.planning.demand import GIB, Demands
from orchestration.recipe.config import Recipe
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe
from orchestration.rendering.documents import from_yaml
from orchestration.rendering.kuberay import manifests
from orchestration.rendering.sizing import completed
from orchestration.rendering.values import RolloutGroup, Values
from tests.deploy.test_kuberay import container_of, group_of

SEVEN = "model.path=/runs/cache/Qwen2.5-7B-Instruct"
PUSH_BYTES = 2 * 7_615_616_512
"""14.2 GiB."""
RENDER = ["render", "kuberay", "qwen-eight-gpus"]


def eight_gpus(*overrides: str) -> Recipe:
    return load_recipe(find_recipe("qwen-eight-gpus"), [SEVEN, *overrides])


def test_shared_memory_holds_the_copies_of_a_push_and_memory_the_processes_too() -> None:
    values = completed(Values(), eight_gpus())
    # 2 x 14.2 GiB and 1 for Ray's objects: the buffer and Ray's copy; Ray's copy and the worker's
    assert values.learner.shared_memory_gib == values.rollout.shared_memory_gib == 30
    # 1.2 x (four ranks of 600 MiB, a reward function of 310, Ray's 400, and 2048 for each of four CUDAs), and the
    # copy of who hands it to Ray: 27.4
    assert values.learner.memory_gib == 28 + 30
    # 1.2 x (an engine of 1250 MiB, a scorer and a reward function of 310, Ray's 400, two CUDAs): 7.5
    assert values.rollout.memory_gib == 8 + 30


def test_a_pod_with_room_for_several_rollout_workers_holds_a_copy_for_each() -> None:
    values = Values(rollout=RolloutGroup(gpus=3, ray_cpus=12))
    assert completed(values, eight_gpus()).rollout.shared_memory_gib == 58  # 4 x 14.2 and 1


def test_pushed_adapters_take_no_more_than_the_least() -> None:
    recipe = eight_gpus("learner.lora.rank=16", "learner.lora.alpha=32", "weight_push.form=adapters")
    assert completed(Values(), recipe).learner.shared_memory_gib == 4


def test_what_is_given_is_kept() -> None:
    values = Values.model_validate({"learner": {"memory_gib": 200, "shared_memory_gib": 64}})
    learner = completed(values, eight_gpus()).learner
    assert (learner.memory_gib, learner.shared_memory_gib) == (200, 64)
    more = completed(Values.model_validate({"learner": {"shared_memory_gib": 64}}), eight_gpus()).learner
    assert more.memory_gib == 28 + 64


def test_a_cpu_recipe_has_room_for_all_that_ray_may_put_beside_its_learner() -> None:
    recipe = load_recipe(find_recipe("movie-reviews"))
    demands, values = Demands(recipe), completed(Values(), recipe)
    beside = ["learner", "rollout", "reference", "reward-human_ratings"]
    assert values.learner.memory_gib is not None
    assert values.learner.memory_gib * GIB > sum(map(demands.resident_bytes, beside)) + 4 * GIB


def test_ray_gets_half_of_the_shared_memory_for_its_objects() -> None:
    found = manifests(eight_gpus(), Values())
    for group in ("learner", "rollout"):
        bytes_of_ray = int(group_of(found, group)["rayStartParams"]["object-store-memory"])
        assert PUSH_BYTES < bytes_of_ray == 15 * GIB


def test_gpus_are_asked_for_with_the_image_that_has_cuda() -> None:
    found = manifests(eight_gpus(), Values())
    assert {container_of(found, group)["image"] for group in ("head", "learner", "rollout")} == {
        "leash:0.1.0-cuda"
    }


@pytest.mark.parametrize(
    ("values", "words", "problem"),
    [
        ("", [SEVEN, "--image", "reg/leash:0.1.0-cpu"], "image reg/leash:0.1.0-cpu has no CUDA"),
        (
            "[learner]\nshared_memory_gib = 14",
            [SEVEN],
            "group learner: has 14 GiB of shared memory, and a weight",
        ),
        (
            "[rollout]\nshared_memory_gib = 4",
            [SEVEN],
            "group rollout: has 4 GiB of shared memory, and a weight",
        ),
        (
            "[learner]\nmemory_gib = 64",
            ["model.path=/runs/cache/mine"],
            "or give learner.shared_memory_gib, rollout.memory_gib, rollout.shared_memory_gib in --values",
        ),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: str, words: list[str], problem: str
) -> None:
    (tmp_path / "v.toml").write_text(values, encoding="utf-8")
    assert cli.main([*RENDER, "--values", str(tmp_path / "v.toml"), *words]) == 2
    printed = capsys.readouterr()
    assert problem in printed.err
    assert printed.out == ""


def test_a_model_that_nobody_knows_is_rendered_with_all_sizes_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "memory_gib = 64\nshared_memory_gib = 32\n"
    (tmp_path / "v.toml").write_text(f"[learner]\n{sizes}[rollout]\n{sizes}", encoding="utf-8")
    words = ["model.path=/runs/cache/mine", "--values", str(tmp_path / "v.toml")]
    assert cli.main([*RENDER, *words]) == 0
    assert from_yaml(capsys.readouterr().out)
