"""`leash plan`: what it prints, as text and as JSON, its exit codes, and that it answers at once."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from learner.config import LoRAConfig
from orchestration import cli
from orchestration.planning.machine import GPU_MIB, gpu_memory, own_ram, own_shared_memory
from orchestration.planning.plan_text import override
from orchestration.planning.provenance import settings
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe, load_with_sources
from tests.orchestration.planning.test_fit import RECIPE, write_small


@pytest.fixture
def seven(tmp_path: Path) -> str:
    (tmp_path / "seven.toml").write_text(RECIPE, encoding="utf-8")
    return str(tmp_path / "seven.toml")


def test_plan_loads_nothing_heavy(seven: str) -> None:
    program = f"""
import sys
from orchestration.cli import main
assert main(["plan", {seven!r}, "--gpu", "T4"]) == 1
assert main(["plan", {seven!r}, "--gpu", "B200"]) == 0
on_hub = ["model.path=Qwen/Qwen2.5-7B-Instruct", "model.revision='{"0123456789abcdef" * 2 + "01234567"}'"]
assert main(["plan", {seven!r}, *on_hub, "--gpu", "B200"]) == 0
heavy = ("torch", "vllm", "ray", "transformers", "deepspeed", "numpy", "httpx2", "huggingface_hub.file_download")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_set_is_shown_with_the_file_or_command_line_that_says_so(tmp_path: Path) -> None:
    top = tmp_path / "top.toml"
    top.write_text('base = "movie-reviews-grpo"\nname = "mine"\n[kl]\nkl_coef = 0.05\nestimator = "k2"\n')
    recipe, source = load_with_sources(top, ["seed=3", "learner.weight_decay=0.0"])
    found = {each.key: (each.value, each.source) for each in settings(recipe, source)}
    grpo, base = str(find_recipe("movie-reviews-grpo")), str(find_recipe("movie-reviews"))
    assert found["name"] == ("mine", str(top))
    assert found["seed"] == (3, "command line")
    assert found["kl.estimator"] == ("k2", str(top))
    assert found["algorithm.kind"] == ("grpo", grpo)
    assert found["learner.lora.rank"] == (16, base)  # LoRA's default, but no adapters are the recipe's
    assert found["rewards.1.weight"] == (0.0, base)
    assert "kl.kl_coef" not in found  # the default, said once more
    assert "learner.weight_decay" not in found
    assert "rollout.workers" not in found


def test_a_plan_that_fits_is_code_0_and_says_against_what(
    seven: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", seven, "--gpu", "B200"]) == 0
    printed = capsys.readouterr().out
    assert "seven: 7,615,616,512 parameters (published config of Qwen2.5-7B-Instruct" in printed
    assert "4 x learner (0.25 CPU, 1 GPU): " in printed
    assert "56 KiB a token" in printed
    assert "weight push 14.2 GiB through /dev/shm; checkpoint 99.3 GiB" in printed
    assert "rewards:length runs as trusted code" in printed
    assert printed.splitlines()[-1] == "fits: 179.1 GiB of memory on each GPU"


def test_a_plan_that_does_not_fit_is_code_1_and_its_advice_makes_it_fit(
    seven: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", seven, "--gpu", "H100"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    advice = shlex.split(last.partition("smallest change that would fit: ")[2])
    assert advice == ["learner.token_budget=4096"]
    assert cli.main(["plan", seven, *advice, "--gpu", "H100"]) == 0


def test_advice_on_adapters_can_be_given_to_the_command_line(seven: str) -> None:
    advice = shlex.split(override("learner.lora", {"rank": 16, "alpha": 32.0}))
    assert advice == ["learner.lora={rank = 16, alpha = 32.0}"]
    assert load_recipe(Path(seven), advice).learner.lora == LoRAConfig(rank=16, alpha=32.0)


def test_what_is_offloaded_is_told_apart_from_the_gpus_memory(
    seven: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven billion parameters learn on one GPU of 80 GB, and the host's memory has what it lacks."""
    words = ["plan", seven, "learner.world_size=1", "--gpu", "H100", "--gpus-per-node", "1"]
    assert cli.main([*words, "learner.zero_stage=0"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    advice = shlex.split(last.partition("smallest change that would fit: ")[2])
    assert advice == ["learner.zero_stage=3", "learner.offload=parameters"]
    assert cli.main([*words, *advice]) == 0
    assert "    158.6 GiB  in the host's memory" in capsys.readouterr().out


def test_json_holds_the_same_for_machines(seven: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", seven, "--gpu", "H100", "trainer.max_lag=2", "--json"]
    assert cli.main(words) == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["change"] == {"learner.token_budget": 4096}
    assert plan["lag"] == {"steps": 2, "groups": 32, "rollouts": 256, "groups_in_flight": 48}
    assert plan["step"]["rollouts"] == 128
    assert plan["step"]["sampled_tokens"] == 128 * 1024
    assert plan["step"]["push_bytes"] == 2 * 7_615_616_512
    assert [process["kind"] for process in plan["processes"]] == [
        "learner",
        "rollout",
        "reference",
        "reward-length",
    ]
    for process in plan["processes"]:
        assert process["total_bytes"] == sum(process["parts_bytes"].values())
    assert (
        "algorithm.importance_sampling = none: nothing corrects for rollouts of older policies"
        in plan["unsafe"]
    )


def test_what_a_run_asks_a_revision_of_is_noted(seven: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model.path=Qwen/Qwen2.5-7B-Instruct", 'prompts={kind = "huggingface", name = "lab/rows"}']
    assert cli.main(["plan", seven, *overrides, "--gpu", "B200"]) == 0
    printed = capsys.readouterr().out
    assert "model.path = Qwen/Qwen2.5-7B-Instruct: at any commit; a run asks for its revision" in printed
    assert "prompts.name = lab/rows: at any commit; a run asks for its revision" in printed


def test_without_gpus_the_plan_is_for_this_machine_or_the_memory_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = str(write_small(tmp_path))
    assert cli.main(["plan", small, "--json", "--ram-gib", "2"]) == 1
    assert json.loads(capsys.readouterr().out)["host"]["available_ram_bytes"] == 2 * 2**30
    cli.main(["plan", small, "--json"])
    assert json.loads(capsys.readouterr().out)["host"]["available_ram_bytes"] == own_ram()
    assert own_ram() > 2**30
    assert own_shared_memory() > 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "asks for GPUs, and nobody says which; add --gpu H100, say"),
        (["--gpu", "H1000"], "--gpu H1000: known are T4, L4,"),
        (["--gpu-memory-gib", "-1"], "--gpu-memory-gib -1: must be more than 0"),
        (["model.path=/nowhere/mine", "--gpu", "H100"], "/nowhere/mine: has no config.json"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    seven: str, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert cli.main(["plan", seven, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_gpus_are_found_by_name_in_any_case() -> None:
    assert gpu_memory("h100") == 81559 * 2**20
    assert set(GPU_MIB) >= {"A100", "H100", "H200", "L4"}
