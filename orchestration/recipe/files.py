"""A recipe's file, and the files that it builds on, as plain tables.

    base = "movie-reviews"      # a bare name of deploy/recipes, or a path from this file's folder

A recipe with a `base` says only what is different. Its tables are laid over the base's key by key; a table of
another `kind` takes the whole place of the base's, and so does everything that is not a table.
"""

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from orchestration.recipe.problems import Key

RECIPES = Path(__file__).parents[2] / "deploy" / "recipes"
"""Where recipes are found by their bare name."""
BASE = "base"
"""The key of a file that names the one below it; not a key of the recipe."""

Table = dict[str, Any]
"""A table as TOML gives it, not yet checked."""


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """What one file says by itself."""

    path: Path
    table: Table

    def says(self, key: Key) -> bool:
        """Whether the key is written in this file."""
        value: Any = self.table
        for part in key:
            in_list = isinstance(value, list) and part in range(len(value))
            if not in_list and not (isinstance(value, dict) and part in value):
                return False
            value = value[part]
        return True


def find_recipe(name: str) -> Path:
    """The file of a recipe, given as a path or as the bare name of one in deploy/recipes."""
    path = Path(name)
    return path if path.is_file() or not _is_bare(name) else _shipped(name)


def read_files(path: Path) -> list[RecipeFile]:
    """A recipe's file, its base, the base's base and so on. Raises `UserError`."""
    files = [_read(path)]
    while BASE in files[-1].table:
        top = files[-1]
        below = _base_of(top)
        if below.resolve() in (file.path.resolve() for file in files):
            raise UserError(f"{top.path}: base = {below}: builds on itself; name another recipe")
        files.append(_read(below))
    return files


def merged(files: list[RecipeFile]) -> Table:
    """One table of all files, the first on top."""
    result: Table = {}
    for file in reversed(files):
        result = _laid_over(result, file.table)
    return result


def _laid_over(below: Table, above: Table) -> Table:
    if below.get("kind") != above.get("kind", below.get("kind")):
        return above
    both_tables = {
        name: _laid_over(below[name], value)
        for name, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(name), dict)
    }
    return below | above | both_tables


def _base_of(file: RecipeFile) -> Path:
    base = file.table.pop(BASE)
    if not isinstance(base, str):
        raise UserError(f'{file.path}: base = {base}: must be text; write it as base = "movie-reviews"')
    try:
        return _shipped(base) if _is_bare(base) else file.path.parent / base
    except UserError as error:
        raise UserError(f"{file.path}: base: {error}") from None


def _is_bare(name: str) -> bool:
    return not Path(name).suffix and Path(name).name == name


def _shipped(name: str) -> Path:
    known = sorted(recipe.stem for recipe in RECIPES.glob("*.toml"))
    if name in known:
        recipe = RECIPES / f"{name}.toml"
        return recipe.relative_to(Path.cwd()) if recipe.is_relative_to(Path.cwd()) else recipe
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"give a file's path, or one of {', '.join(known)}"
    raise UserError(f"{name}: no recipe has this name; {hint}")


def _read(path: Path) -> RecipeFile:
    try:
        return RecipeFile(path, tomllib.loads(path.read_bytes().decode("utf-8")))
    except FileNotFoundError:
        problem = "no such file; give a recipe's path, or a bare name such as movie-reviews"
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); give the path of a recipe's file"
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = f"line {line} is not UTF-8 text; save the file as UTF-8"
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problem = f"not valid TOML: {error}; correct that place"
    raise UserError(f"{path}: {problem}")
