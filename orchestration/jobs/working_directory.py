"""What a job brings along to the cluster: Leash's own sources, the resolved recipe, and what the user names.

Small, because Ray keeps it in the memory of the head node and copies it to every node. Models, data and runs stay
where all nodes see them.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.errors import UserError
from orchestration.recipe.config import Recipe
from orchestration.recipe.text import resolved_toml

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "actors", "learner", "orchestration")
RECIPE_FILE = "recipe.toml"
MAX_BYTES = 20 * 2**20
"""Of all files together. Leash's sources are a few hundred kilobytes; Ray's own limit is hundreds of megabytes."""
_NAMES_LEFT_OUT = ("__pycache__", ".git", ".venv", ".env", "runs")
"""What no job needs, and what often holds keys."""
_LEFT_OUT = shutil.ignore_patterns(*_NAMES_LEFT_OUT, "*.pyc")


def pack(recipe: Recipe, include: Sequence[Path], into: Path) -> None:
    """Copy it all into an empty folder. Raises `UserError` if something is missing, in the way, or too large."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, into / room, ignore=_LEFT_OUT)
    (into / RECIPE_FILE).write_text(resolved_toml(recipe), encoding="utf-8")
    for path in include:
        _copy(path, into / path.resolve().name)
    _require_small(into, include)


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise UserError(f"--include {source}: no such file or folder; name one of this machine")
    if target.exists():
        raise UserError(f"--include {source}: {target.name} is packed already; rename it")
    if linked := next((path for path in source.rglob("*") if path.is_symlink() and path.is_dir()), None):
        raise UserError(
            f"--include {source}: {linked} is a link to a folder, which may lead anywhere and in circles; "
            "name that folder with an --include of its own"
        )
    # Measured before it is copied: a folder of checkpoints would fill the disk first.
    _require_small(source, [source])
    if source.is_dir():
        shutil.copytree(source, target, ignore=_LEFT_OUT)
    else:
        shutil.copy2(source, target)


def _require_small(folder: Path, include: Sequence[Path]) -> None:
    sizes = {file: file.stat().st_size for file in _files(folder)}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = max(sizes, key=lambda file: sizes[file])
        named = ", ".join(map(str, include))
        raise UserError(
            f"--include {named}: a job brings at most {MAX_BYTES / 2**20:g} MiB along, and this is "
            f"{total / 2**20:.1f} MiB, most of it {largest.name} ({sizes[largest] / 2**20:.1f} MiB); put models "
            "and data on storage that all nodes share, and name them in the recipe by their path there"
        )


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (
            file
            for file in path.rglob("*")
            if file.is_file() and not set(_NAMES_LEFT_OUT).intersection(file.relative_to(path).parts)
        )
