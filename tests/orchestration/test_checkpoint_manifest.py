"""Checkpoints of a run: found whole or not at all, whatever happened to the disk or to the process."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from orchestration.run_folder import RunFolder
from tests.orchestration.file_operations import OPERATIONS, FileOperations, Killed

FILES = {"learner.json": "{}", "policy/state/weights.pt": "weights", "policy/state/optimizer.pt": "moments"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def begin(folder: RunFolder, step: int, content: str = "") -> Path:
    """A checkpoint of a few files, written and not yet committed."""
    unfinished = folder.begin_checkpoint(step)
    for name, text in FILES.items():
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / name).write_text(f"{text} of {step} {content}", encoding="utf-8")
    return unfinished


def save(folder: RunFolder, step: int, content: str = "", **options: Any) -> Path:
    return folder.commit_checkpoint(begin(folder, step, content), **options)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in (folder.path / "checkpoints").iterdir())


def test_a_checkpoint_counts_once_it_is_committed(folder: RunFolder) -> None:
    assert folder.latest_checkpoint() is None
    unfinished = begin(folder, 5)
    assert folder.latest_checkpoint() is None  # killed here, there is none
    assert folder.commit_checkpoint(unfinished) == folder.latest_checkpoint()
    assert folder.damaged == []


def test_the_manifest_tells_step_sizes_and_digests(folder: RunFolder) -> None:
    manifest = json.loads((save(folder, 5) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["step"] == 5
    assert manifest["files"].keys() == FILES.keys()
    assert manifest["files"]["learner.json"] == {
        "size_bytes": 8,
        "sha256": "049bf9e678177c4f134f175f97b1269fc5360d328373c5ce927afff271d41f53",
    }


def test_the_newest_checkpoint_is_found(folder: RunFolder) -> None:
    for step in (9, 10, 100, 999_999, 1_000_000):
        last = save(folder, step, keep=9)
        assert folder.latest_checkpoint() == last == folder.path / "checkpoints" / f"step-{step:06d}"


def test_a_run_in_a_relative_folder_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer hands absolute paths to the learner, and commits them."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("runs/mine"))
    folder.commit_checkpoint(begin(folder, 5).absolute())
    assert folder.latest_checkpoint() == Path("runs/mine/checkpoints/step-000005")


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, [40]), (2, [30, 40]), (3, [20, 30, 40]), (9, [10, 20, 30, 40])]
)
def test_the_newest_few_are_kept(folder: RunFolder, keep: int, kept: list[int]) -> None:
    for step in (10, 20, 30, 40):
        save(folder, step, keep=keep)
    assert names(folder) == [f"step-{step:06d}" for step in kept]


def test_keeping_none_is_refused_before_anything_is_touched(folder: RunFolder) -> None:
    whole = save(folder, 5)
    with pytest.raises(ValueError, match="keep is 0; set .* 1 or more"):
        save(folder, 6, keep=0)
    assert folder.latest_checkpoint() == whole


def test_what_crashes_left_is_removed_and_what_people_put_there_stays(folder: RunFolder) -> None:
    whole = save(folder, 5)
    begin(folder, 10)
    (folder.path / "checkpoints" / "step-000004.removed" / "half").mkdir(parents=True)
    others = ["mine", "step-000005-copy", "step-000005.bak", "step-best"]
    for name in others:
        (folder.path / "checkpoints" / name).mkdir()
    assert folder.latest_checkpoint() == whole
    again = begin(folder, 10)
    assert names(folder) == [
        *others[:1],
        whole.name,
        "step-000005-copy",
        "step-000005.bak",
        again.name,
        "step-best",
    ]
    folder.commit_checkpoint(again)
    assert names(folder) == [*others[:-1], "step-000010", "step-best"]


def damage_contents(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def damage_length(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def swap_for_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "contents": (damage_contents, "not what was saved"),
    "truncated": (damage_length, "bytes, and"),
    "empty": (empty, "0 bytes, and"),
    "missing": (Path.unlink, "No such file or directory"),
    "folder": (swap_for_folder, ""),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder: RunFolder, damage: str, name: str) -> None:
    older, newer = (save(folder, step, keep=2) for step in (5, 10))
    tamper, said = DAMAGE[damage]
    tamper(newer / name)
    assert folder.latest_checkpoint() == older
    [problem] = folder.damaged
    assert str(newer / name) in problem
    assert said in problem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"step": 10}', "cannot be read"),
        ('{"step": 10, "files": {"learner.json": {"size_bytes": "many"}}}', "cannot be read"),
        ('{"step": 9, "files": {}}', "is of step 9, not 10"),
    ],
)
def test_a_checkpoint_with_a_damaged_manifest_gives_way_too(
    folder: RunFolder, content: str | None, said: str
) -> None:
    older, newer = (save(folder, step, keep=2) for step in (5, 10))
    if content is None:
        (newer / "manifest.json").unlink()
    else:
        (newer / "manifest.json").write_text(content, encoding="utf-8")
    assert folder.latest_checkpoint() == older
    [problem] = folder.damaged
    assert str(newer / "manifest.json") in problem
    assert said in problem


def test_with_no_whole_checkpoint_every_wrong_file_is_named(folder: RunFolder) -> None:
    older, newer = (save(folder, step, keep=2) for step in (5, 10))
    wrong = [newer / "policy/state/weights.pt", newer / "learner.json", older / "manifest.json"]
    for file in wrong:
        file.unlink()
    with pytest.raises(UserError, match=r"no whole checkpoint .* Restore these files .* or remove") as caught:
        folder.latest_checkpoint()
    assert all(str(file) in str(caught.value) for file in wrong)
    assert str(newer / "policy/state/optimizer.pt") not in str(caught.value)


def test_what_was_found_before_is_forgotten(folder: RunFolder) -> None:
    older, newer = (save(folder, step, keep=2) for step in (5, 10))
    damage_contents(newer / "learner.json")
    for _ in range(2):
        assert folder.latest_checkpoint() == older
        assert len(folder.damaged) == 1
    damage_contents(newer / "learner.json")  # and back
    assert folder.latest_checkpoint() == newer
    assert folder.damaged == []


@pytest.mark.parametrize("step", [7, 10], ids=["on the way", "the same step again"])
def test_going_on_from_an_older_checkpoint_gives_up_the_damaged_one(folder: RunFolder, step: int) -> None:
    older, newer = (save(folder, step, keep=2) for step in (5, 10))
    damage_contents(newer / "learner.json")
    assert folder.latest_checkpoint() == older
    again = save(folder, step, keep=2)
    assert folder.latest_checkpoint() == again
    assert folder.damaged == []
    assert names(folder) == [older.name, again.name]


def test_a_step_is_saved_again_beside_what_a_crash_left_of_saving_it_again(folder: RunFolder) -> None:
    whole = save(folder, 5, "old")
    shutil.copytree(whole, whole.with_suffix(".replaced"))
    assert save(folder, 5, "new") == whole
    assert names(folder) == [whole.name]
    assert (whole / "learner.json").read_text(encoding="utf-8") == "{} of 5 new"


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileOperations]:
    monkeypatch.setattr(os, "fsync", OPERATIONS.fsync)
    yield OPERATIONS
    assert OPERATIONS.log is None


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "disk full")], ids=["killed", "disk full"])
@pytest.mark.parametrize(
    ("step", "keep"), [(10, 1), (11, 1), (11, 2)], ids=["same step again", "next step", "keep two"]
)
def test_a_save_cut_short_at_any_operation_leaves_a_whole_checkpoint(
    folder: RunFolder, tmp_path: Path, operations: FileOperations, step: int, keep: int, error: BaseException
) -> None:
    for earlier in (9, 10):
        save(folder, earlier, "old", keep=2)
    begin(folder, 12)  # and crashed
    folder.path.rename(tmp_path / "before")

    def save_again(**options: Any) -> list[str]:
        shutil.rmtree(folder.path, ignore_errors=True)
        shutil.copytree(tmp_path / "before", folder.path)
        return operations.record(lambda: save(folder, step, "new", keep=keep), **options)

    num_operations = len(save_again())
    assert num_operations > 30
    found = set()
    for fail_at in range(num_operations):
        save_again(fail_at=fail_at, error=error)
        latest = folder.latest_checkpoint()
        assert latest is not None
        assert folder.damaged == []
        found.add((latest / "learner.json").read_text(encoding="utf-8"))
        again = save(folder, 12, "later", keep=keep)
        assert folder.latest_checkpoint() == again
        assert len(names(folder)) <= keep
        assert [name for name in names(folder) if "." in name] == []
    assert found == {"{} of 10 old", f"{{}} of {step} new"}


def test_older_checkpoints_are_removed_once_the_new_one_is_on_the_disk(
    folder: RunFolder, operations: FileOperations
) -> None:
    older = save(folder, 5)
    unfinished = begin(folder, 10)
    log = operations.record(lambda: folder.commit_checkpoint(unfinished))
    written = [*(unfinished / name for name in FILES), unfinished / "manifest.json"]
    folders = [unfinished, unfinished / "policy", unfinished / "policy/state"]
    synced = [log.index(f"fsync {path}") for path in [*written, *folders]]
    renamed = log.index(f"os.rename {unfinished}")
    synced_above = [log.index(f"fsync {path}") for path in (folder.path / "checkpoints", folder.path)]
    removed = log.index(f"os.rename {older}")
    assert log.index(f"open {unfinished / 'manifest.json'}") < min(synced)
    assert max(synced) < renamed < min(synced_above)
    assert max(synced_above) < removed
    assert removed < min(
        index for index, line in enumerate(log) if line.startswith(("os.remove", "os.rmdir"))
    )
