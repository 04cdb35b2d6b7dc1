"""The recipes for GPUs in deploy/recipes: each is valid, fits what it says it is meant for, and claims no more."""

import json

import pytest

from orchestration import cli
from orchestration.recipe.files import RECIPES
from orchestration.recipe.loading import load_recipe

MEANT_FOR = {
    "qwen-one-gpu": ("A100", "H100"),
    "llama-lora-24gib": ("RTX4090", "A10G", "L4"),
    "qwen-eight-gpus": ("A100", "H100"),
    "llama-lora-eight-gpus": ("A100", "H100"),
    "qwen-two-nodes": ("A100", "H100"),
}
GPUS = {
    "qwen-one-gpu": 1,
    "llama-lora-24gib": 1,
    "qwen-eight-gpus": 8,
    "llama-lora-eight-gpus": 8,
    "qwen-two-nodes": 16,
}


def test_every_shipped_recipe_that_asks_for_gpus_is_checked_here() -> None:
    asking = {path.stem for path in RECIPES.glob("*.toml") if load_recipe(path).learner.resources.num_gpus}
    assert asking == MEANT_FOR.keys()


@pytest.mark.parametrize(("name", "gpu"), [(name, gpu) for name, gpus in MEANT_FOR.items() for gpu in gpus])
def test_a_recipe_fits_the_gpus_that_it_is_meant_for(
    capsys: pytest.CaptureFixture[str], name: str, gpu: str
) -> None:
    assert cli.main(["validate", name]) == 0
    capsys.readouterr()
    code = cli.main(["plan", name, "--gpu", gpu, "--gpus-per-node", str(GPUS[name]), "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert (code, plan["problems"]) == (0, [])
    assert plan["host"]["gpus"] <= GPUS[name]
    # With room for a handful of sequences an engine would sample one after the other.
    assert plan["engine"]["longest_sequences_in_cache"] >= 16


@pytest.mark.parametrize("name", MEANT_FOR)
def test_a_recipe_says_what_it_has_not_been_run_on(name: str) -> None:
    assert (
        "Has not been run on this hardware, nor on any other GPU." in (RECIPES / f"{name}.toml").read_text()
    )


@pytest.mark.parametrize("name", sorted({path.stem for path in RECIPES.glob("*.toml")} - MEANT_FOR.keys()))
def test_a_recipe_for_cpus_fits_16_gib(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert cli.main(["plan", name, "--ram-gib", "16"]) == 0


def test_a_gpu_without_bfloat16_is_no_place_for_recipes_in_bfloat16(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["plan", "llama-lora-24gib", "--gpu", "v100-32gb", "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert [problem for problem in plan["problems"] if "Ampere" in problem]
