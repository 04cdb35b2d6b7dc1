"""The `leash` command: what it calls, what it prints, and its exit codes. No part of the run is real here."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from core.errors import UserError, WorkerError
from orchestration import cli
from orchestration.recipe.config import Recipe
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe

Calls = list[tuple[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the command asked of the rest of Leash, in order."""
    calls: Calls = []
    run, inputs = ModuleType("orchestration.run"), ModuleType("orchestration.inputs")

    def train(recipe: Recipe, **options: Any) -> dict[str, Any]:
        calls.append(("train", (recipe, options)))
        return {}

    def train_reward_model(recipe: Recipe) -> Path:
        calls.append(("reward", recipe))
        return Path("models/reward")

    run.train, inputs.train_reward_model = train, train_reward_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "orchestration.run", run)
    monkeypatch.setitem(sys.modules, "orchestration.inputs", inputs)
    monkeypatch.setattr(cli, "prepare", lambda name: calls.append(("prepare", name)))
    return calls


def test_validate_prints_the_recipe_in_a_form_that_loads_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", "movie-reviews", "kl.kl_coef=0.07"]) == 0
    printed = capsys.readouterr()
    assert tomllib.loads(printed.out)["kl"]["kl_coef"] == 0.07
    assert "Coefficient of the penalty" in printed.out
    assert printed.err.endswith("movie-reviews.toml: valid\n")
    (tmp_path / "again.toml").write_text(printed.out)
    assert load_recipe(tmp_path / "again.toml") == load_recipe(
        find_recipe("movie-reviews"), ["kl.kl_coef=0.07"]
    )


def test_validate_loads_nothing_heavy() -> None:
    """Asking whether a recipe is right must not take the seconds that torch, vLLM and Ray take to import."""
    program = """
import sys
from orchestration.cli import main
assert main(["validate", "movie-reviews"]) == 0
assert main(["validate", "movie-reviews", "kl.kl_coef=-1"]) == 2
print([name for name in ("torch", "vllm", "ray", "transformers", "deepspeed") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_validate_notes_a_reward_function_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    override = "rewards.1.function=no_such_module_here:reward"
    assert cli.main(["validate", "movie-reviews", override]) == 0
    assert "note: rewards.1.function" in capsys.readouterr().err
    assert cli.main(["validate", "movie-reviews"]) == 0
    assert "note" not in capsys.readouterr().err


def test_train_passes_recipe_and_options_on_wherever_the_overrides_stand(calls: Calls) -> None:
    words = ["train", "movie-reviews", "seed=1", "--run", "runs/a", "trainer.steps=3", "--resume"]
    assert cli.main([*words, "--address", "auto", "seed=2"]) == 0
    ((what, (recipe, options)),) = calls
    assert what == "train"
    assert (recipe.seed, recipe.trainer.steps) == (2, 3)
    assert options == {"run_folder": Path("runs/a"), "resume": True, "address": "auto"}


def test_a_job_that_is_tried_again_starts_the_run_or_goes_on_with_it(calls: Calls, tmp_path: Path) -> None:
    train = ["train", "movie-reviews", "--run", str(tmp_path), "--resume-or-start"]
    assert cli.main(train) == 0
    (tmp_path / "recipe.toml").touch()
    assert cli.main(train) == 0
    assert [options["resume"] for _, (_, options) in calls] == [False, True]


@pytest.mark.parametrize("option", ["--resume", "--resume-or-start"])
def test_going_on_needs_the_folder(calls: Calls, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert cli.main(["train", "movie-reviews", option]) == 2
    assert (
        f"{option}: goes on with a run, so it needs its folder; add --run FOLDER" in capsys.readouterr().err
    )
    assert calls == []


def test_reward_trains_the_recipes_reward_model(calls: Calls) -> None:
    assert cli.main(["reward", "movie-reviews", "reward_model.l2=0.5"]) == 0
    ((what, recipe),) = calls
    assert what == "reward"
    assert recipe.reward_model.l2 == 0.5


def test_reward_without_a_reward_model_to_train_is_refused(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reward", "movie-reviews", "reward_model=none", "rewards.0.path=/m"]) == 2
    assert calls == []
    assert "add a [reward_model] table" in capsys.readouterr().err


def test_demo_prepares_what_the_recipe_needs_then_trains(calls: Calls) -> None:
    assert cli.main(["demo", "trainer.steps=2"]) == 0
    assert [what for what, _ in calls] == ["prepare", "prepare", "train"]
    assert {name for what, name in calls if what == "prepare"} == {"smollm2-135m-instruct", "movie-reviews"}
    recipe, options = calls[-1][1]
    assert recipe.trainer.steps == 2
    assert options == {"run_folder": None, "resume": False, "address": None}


def test_several_problems_are_listed_one_a_line_and_nothing_runs(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "movie-reviews", "sed=1", "kl.kl_coef=-1"]) == 2
    assert calls == []
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "error: 2 problems"
    assert all(line.startswith("  command line: ") for line in lines)
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "movie-review"], "did you mean movie-reviews?"),
        (["train", "no/such.toml"], "no/such.toml: no such file"),
        (["train", "movie-reviews", "--resume"], "add --run FOLDER"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    calls: Calls, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert cli.main(words) == 2
    assert calls == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert complaint in line


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["train"], ["train", "movie-reviews", "--res"], ["demo", "-x"]]
)
def test_wrong_options_are_code_2_as_well(
    calls: Calls, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("3 GPUs asked for"), 2, "error: 3 GPUs asked for\n"),
        (WorkerError("rollout-0 did not answer"), 1, "error: rollout-0 did not answer\n"),
        (UserError("reward: \x1b]0;title\x07\x1b[2J很\t好"), 2, "error: reward: ]0;title[2J很\t好\n"),
        (WorkerError("one \x1b[2J\ntwo"), 1, "error: 2 problems\n  one [2J\n  two\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_run_raises_becomes_an_exit_code(
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(sys.modules["orchestration.run"], "train", raiser(error))
    assert cli.main(["train", "movie-reviews"]) == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["orchestration.run"], "train", raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "movie-reviews"])


@pytest.mark.parametrize("command", ["demo", "train", "reward", "validate"])
def test_help_names_every_command_and_how_to_override(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for words in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert command in printed
        assert "KEY=VALUE" in printed


def raiser(error: BaseException) -> Callable[..., None]:
    def raise_it(*args: Any, **options: Any) -> None:
        raise error

    return raise_it
