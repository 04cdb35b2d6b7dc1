"""What a run leaves on disk, and how it is found again.

recipe.toml           the resolved recipe          metrics.jsonl     one object a step
run.json              versions, commit, seed       samples/          every rollout, one file a step
heldout-before.jsonl  held-out completions         summary.json      the result, for people and scripts
heldout-after.jsonl   of both policies             before-after.md   the two side by side
heldout-perplexity.json   of held-out texts before training
checkpoints/step-N/   to go on from                model/            the trained policy, Hugging Face format
evaluations.jsonl     held-out prompts on the way  model-best/       the version that did best on them
ledger/               what became of every group   control.json      how to steer it, while it lives
events.jsonl          workers, orders, checkpoints
"""

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.sample_files import SAMPLES_FOLDER, step_files
from core.versions import versions
from orchestration.checkpoint_manifest import find_damage, write_manifest
from orchestration.recipe.config import Recipe
from orchestration.recipe.live_settings import resumed_otherwise
from orchestration.recipe.loading import load_recipe
from orchestration.recipe.resumed import changed_settings
from orchestration.recipe.text import resolved_toml

BEFORE_FILE, AFTER_FILE = "heldout-before.jsonl", "heldout-after.jsonl"
PERPLEXITY_FILE = "heldout-perplexity.json"

LEDGER_FOLDER = "ledger"
UNFINISHED, REPLACED, REMOVED = ".unfinished", ".replaced", ".removed"
"""Ends of the names of checkpoints that are being written, that gave way to one of the same step (and count until
that one is in place), and that are being removed."""


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_new = False
        self.resumed_otherwise: dict[str, str] = {}
        """Of what can be set in flight: what the recipe that resumes a run says otherwise than the one before."""
        self.damaged: list[str] = []
        """What `latest_checkpoint` found wrong with checkpoints newer than the one it gave."""

    @classmethod
    def create(cls, recipe: Recipe, path: Path | None) -> "RunFolder":
        """A new folder, with the recipe and the versions in it. Raises `UserError` if there is a run in it."""
        path = path or Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder.keep_recipe(recipe)
        write_atomically(
            path / "run.json", json.dumps({"versions": versions(), "commit": _commit()}, indent=2)
        )
        folder._is_new = True
        return folder

    @classmethod
    def reopen(cls, recipe: Recipe, path: Path) -> "RunFolder":
        """An existing run, maybe on another number of workers. It keeps its recipe until `keep_recipe`. Raises
        `UserError` if there is none, or if it ran another recipe."""
        file = path / "recipe.toml"
        if not file.is_file():
            raise UserError(
                f"{path}: no run to resume (no recipe.toml in it). Leave --resume out to start one."
            )
        before = load_recipe(file)
        changed = changed_settings(before, recipe)
        if changed:
            raise UserError(
                f"{path}: was started with other settings: {'; '.join(changed)}. Resume it with its own {file}."
            )
        folder = cls(path)
        folder.resumed_otherwise = resumed_otherwise(before, recipe)
        return folder

    def keep_recipe(self, recipe: Recipe) -> None:
        """The recipe of the run from now on. Of a resumed one not before `resumed_otherwise` is journaled."""
        write_atomically(self.path / "recipe.toml", resolved_toml(recipe))

    def discard_if_untrained(self) -> None:
        """Take back what a new run wrote that ended on bad input before its first step, so that the corrected
        recipe may use the folder. Files of others stay, and the folder with them."""
        if not self._is_new or (self.path / "metrics.jsonl").exists() or (self.path / "checkpoints").exists():
            return
        for name in (
            *("recipe.toml", "run.json", "metrics-url.txt"),
            *(BEFORE_FILE, PERPLEXITY_FILE),
        ):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / LEDGER_FOLDER, ignore_errors=True)
        for folder in (self.path / SAMPLES_FOLDER, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, byte for byte; None if there has been none.

        What is wrong with newer ones is in `damaged` afterwards. Raises `UserError` if there are checkpoints and
        all are damaged.
        """
        self.damaged = []
        checkpoints = self._checkpoints("", REPLACED)
        for checkpoint in checkpoints:
            damage = find_damage(checkpoint, _step(checkpoint))
            if not damage:
                return checkpoint
            self.damaged += damage
        if checkpoints:
            raise UserError(
                f"{self.path / 'checkpoints'}: no whole checkpoint to go on from. {'; '.join(self.damaged)}. "
                "Restore these files from a copy, or remove this folder to train from the start."
            )
        return None

    def begin_checkpoint(self, step: int) -> Path:
        """An empty folder to write a checkpoint into. It counts once `commit_checkpoint` has renamed it.

        What crashes have left of others is removed first, if it can be: it may fill the disk.
        """
        for leftover in self._checkpoints(UNFINISHED, REMOVED):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = self.path / "checkpoints" / f"step-{step:06d}{UNFINISHED}"
        unfinished.mkdir(parents=True)
        return unfinished

    def commit_checkpoint(self, unfinished: Path, *, keep: int = 1) -> Path:
        """Make it the newest checkpoint, on the disk for good, and only then remove all but the newest `keep`.

        Cut short at any point, it leaves a whole checkpoint for `latest_checkpoint` to find: this one, or the
        one that was the latest before. Those of later steps are of a course that was given up, and are removed.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; set how many checkpoints to keep, 1 or more")
        checkpoint = unfinished.with_suffix("")
        replaced = checkpoint.with_suffix(REPLACED)
        write_manifest(unfinished, _step(checkpoint))
        _fsync_tree(unfinished)
        if checkpoint.exists():
            if replaced.exists():
                _remove(replaced)
            checkpoint.rename(replaced)
        unfinished.rename(checkpoint)
        for folder in (checkpoint.parent, self.path):
            _fsync(folder)
        own_step = _step(checkpoint)
        kept = [path for path in self._checkpoints("") if _step(path) <= own_step][:keep]
        for other in self._checkpoints("", REPLACED):
            if other not in kept:
                _remove(other)
        return checkpoint

    def _checkpoints(self, *suffixes: str) -> list[Path]:
        """Those whose name ends so, the newest first, and what is in place before what it has replaced."""
        found = [
            path
            for path in self.path.glob("checkpoints/step-*")
            if path.suffix in suffixes and re.fullmatch(r"step-\d+", path.stem)
        ]
        return sorted(found, key=lambda path: (-_step(path), path.suffix))

    def cut_records_after(self, step: int) -> list[dict[str, Any]]:
        """The records up to a step; later ones, and the samples of their steps, are of a course that was given up:
        they are removed, since the resumed run may be shorter."""
        for number, samples in step_files(self.path).items():
            if number > step:
                samples.unlink()
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        # A line without its end was being written when the run was killed.
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
        records = [json.loads(line) for line in lines]
        kept = [record for record in records if record["step"] <= step]
        write_atomically(file, "".join(json.dumps(record) + "\n" for record in kept))
        return kept


def holds_run(path: Path) -> bool:
    """Whether a run was started in this folder."""
    return (path / "recipe.toml").exists()


def check_free(path: Path) -> None:
    """Raises `UserError` unless a new run can be written there. Writes nothing."""
    if holds_run(path):
        raise UserError(
            f"{path}: holds a run already; choose another folder, or go on with it by leash train --resume"
        )
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{path}: cannot be the folder of a run ({there} is no folder that can be written); choose another"
        )


def write_atomically(file: Path, text: str) -> None:
    """The whole text or, after a crash, none of it."""
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(file)


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """The content as JSON; NaN and infinity, which JSON has no way to write, become null."""
    write_atomically(file, json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")


def append_line(file: Path, content: Mapping[str, object]) -> None:
    """One more line of JSON; what is not finite becomes null. Half of a line that a run left which was killed while
    it wrote is removed."""
    with file.open("a+b") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read() != b"\n":
                stream.seek(0)
                stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(json.dumps(jsonable(content), allow_nan=False).encode() + b"\n")


def jsonable(value: object) -> object:
    """The value, without NaN and infinity."""
    match value:
        case Mapping():
            return {key: jsonable(inner) for key, inner in value.items()}
        case list() | tuple():
            return [jsonable(inner) for inner in value]
        case _:
            return None if isinstance(value, float) and not math.isfinite(value) else value


def _commit() -> str | None:
    """The git commit of the source, where there is one."""
    source = Path(__file__).parents[1]
    try:
        result = subprocess.run(
            ["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))


def _remove(checkpoint: Path) -> None:
    """Renamed first, so that half of a checkpoint is not taken for one."""
    removed = checkpoint.with_suffix(REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    checkpoint.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)  # or else before the next checkpoint


def _fsync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
