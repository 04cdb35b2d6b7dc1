"""What a run leaves on disk, when it is killed at the worst moment and gone on with."""

import json
from pathlib import Path

import pytest

from core.errors import UserError
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import load_recipe
from orchestration.run_folder import RunFolder, append_line, write_atomically
from tests.recipes import MINIMAL


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "tiny.toml").write_text(MINIMAL, encoding="utf-8")
    return load_recipe(tmp_path / "tiny.toml")


@pytest.fixture
def folder(recipe: Recipe, tmp_path: Path) -> RunFolder:
    return RunFolder.create(recipe, tmp_path / "run")


def test_a_new_run_keeps_its_recipe_and_versions_first(folder: RunFolder, recipe: Recipe) -> None:
    assert load_recipe(folder.path / "recipe.toml") == recipe
    kept = json.loads((folder.path / "run.json").read_text(encoding="utf-8"))
    assert kept.keys() == {"versions", "commit"}
    assert "torch" in kept["versions"]


def test_a_folder_holds_one_run(folder: RunFolder, recipe: Recipe) -> None:
    with pytest.raises(UserError, match="holds a run already; choose another folder"):
        RunFolder.create(recipe, folder.path)


def test_a_run_is_resumed_with_its_own_settings_only(folder: RunFolder, tmp_path: Path) -> None:
    same = load_recipe(tmp_path / "tiny.toml")
    assert RunFolder.reopen(same, folder.path).path == folder.path
    other = load_recipe(tmp_path / "tiny.toml", ["trainer.steps=3"])
    with pytest.raises(
        UserError, match=r"trainer.steps was \d+, and is 3. Resume it with its own .*recipe.toml"
    ):
        RunFolder.reopen(other, folder.path)


def test_a_run_is_resumed_on_other_workers(folder: RunFolder, tmp_path: Path) -> None:
    overrides = ["rollout.workers=7", "rollout.autoscale.max_workers=9", "learner.resources.num_cpus=3"]
    overrides += ["rewards.0.replicas=2", "faults.max_retries=0", "trainer.checkpoint_every=5"]
    overrides += ["learner.world_size=2", "learner.zero_stage=3"]
    other = load_recipe(tmp_path / "tiny.toml", overrides)
    for _ in range(2):  # as long as its recipe is not kept, the run is as it was
        resumed = RunFolder.reopen(other, folder.path)
        assert resumed.resumed_otherwise == {
            "trainer.checkpoint_every": "5",
            "rollout.autoscale.min_workers": "1",
            "rollout.autoscale.max_workers": "9",
            "rollout.autoscale.grow_above": "0.5",
            "rollout.autoscale.shrink_below": "0.1",
        }, "each may have been set in flight, too"
    resumed.keep_recipe(other)
    again = RunFolder.reopen(load_recipe(folder.path / "recipe.toml"), folder.path)
    assert again.resumed_otherwise == {}
    kept = load_recipe(folder.path / "recipe.toml")
    assert (kept.rollout.workers, kept.trainer.checkpoint_every) == (7, 5)
    assert (kept.learner.world_size, kept.learner.zero_stage) == (2, 3)
    with pytest.raises(UserError, match=r"rollout.group_size was 4, and is 2"):
        RunFolder.reopen(load_recipe(tmp_path / "tiny.toml", ["rollout.group_size=2"]), folder.path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, "old")

    def crash(path: Path, target: Path) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(OSError, match="killed"):
            write_atomically(file, "new")
    assert file.read_text(encoding="utf-8") == "old"
    write_atomically(file, "new")
    assert file.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [file]


def lines(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "score": step / 2}) + "\n" for step in steps)


def test_records_after_the_checkpoint_are_cut(folder: RunFolder) -> None:
    file = folder.path / "metrics.jsonl"
    assert folder.cut_records_after(3) == []
    file.write_text(lines(1, 2, 3, 4, 5), encoding="utf-8")
    kept = folder.cut_records_after(3)
    assert kept == [{"step": step, "score": step / 2} for step in (1, 2, 3)]
    assert file.read_text(encoding="utf-8") == lines(1, 2, 3)
    assert folder.cut_records_after(0) == []
    assert file.read_text(encoding="utf-8") == ""


def test_samples_of_a_course_that_was_given_up_go_with_its_records(folder: RunFolder) -> None:
    """Killed at step 14, resumed from step 10 and ended at 12: nobody would write steps 13 and 14 again."""
    samples = folder.path / "samples"
    samples.mkdir()
    for name in (
        "step-000009.jsonl",
        "step-000010.jsonl",
        "step-000013.jsonl",
        "step-000014.jsonl",
        "notes.jsonl",
    ):
        (samples / name).write_text("{}\n", encoding="utf-8")
    folder.cut_records_after(10)
    kept = sorted(path.name for path in samples.iterdir())
    assert kept == ["notes.jsonl", "step-000009.jsonl", "step-000010.jsonl"]


@pytest.mark.parametrize("num_bytes", [1, 9, 12, len(lines(4)) - 1])
def test_a_line_that_was_being_written_is_dropped(folder: RunFolder, num_bytes: int) -> None:
    file = folder.path / "metrics.jsonl"
    file.write_text(lines(1, 2, 3) + lines(4)[:num_bytes], encoding="utf-8")
    assert [record["step"] for record in folder.cut_records_after(3)] == [1, 2, 3]
    assert file.read_text(encoding="utf-8") == lines(1, 2, 3)


def test_bad_input_before_the_first_step_leaves_the_folder_to_the_corrected_recipe(
    folder: RunFolder, recipe: Recipe
) -> None:
    (folder.path / "samples").mkdir()
    (folder.path / "metrics-url.txt").write_text("http://x\n", encoding="utf-8")
    folder.discard_if_untrained()
    assert not folder.path.exists()
    RunFolder.create(recipe, folder.path)


def test_bad_input_takes_back_neither_training_nor_what_others_wrote(folder: RunFolder) -> None:
    (folder.path / "notes.txt").write_text("mine", encoding="utf-8")
    (folder.path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    folder.discard_if_untrained()
    assert (folder.path / "recipe.toml").is_file()
    (folder.path / "metrics.jsonl").unlink()
    folder.discard_if_untrained()
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]


def test_a_run_that_cannot_be_resumed_keeps_what_it_has(folder: RunFolder, recipe: Recipe) -> None:
    """Also before its first step: what was acknowledged is in the ledger."""
    (folder.path / "ledger").mkdir()
    (folder.path / "ledger" / "segment").write_text("groups", encoding="utf-8")
    before = sorted(folder.path.rglob("*"))
    RunFolder.reopen(recipe, folder.path).discard_if_untrained()
    assert sorted(folder.path.rglob("*")) == before


def test_records_are_json_lines_also_after_a_write_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    append_line(file, {"step": 1, "reward": float("nan"), "rewards": {"vader": float("inf"), "m": 0.5}})
    with file.open("a") as stream:
        stream.write('{"step": 2, "rew')
    append_line(file, {"step": 2, "reward": 1.25})
    append_line(file, {"step": 3, "reward": 1.5})
    first, second, third = file.read_text().splitlines()
    assert json.loads(first) == {"step": 1, "reward": None, "rewards": {"vader": None, "m": 0.5}}
    assert json.loads(second) == {"step": 2, "reward": 1.25}
    assert json.loads(third) == {"step": 3, "reward": 1.5}


def test_a_line_that_is_all_there_is_and_was_cut_off_goes(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "rew')
    append_line(file, {"step": 1})
    assert file.read_text() == '{"step": 1}\n'
