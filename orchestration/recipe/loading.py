"""A recipe's file and the command line's overrides in; a checked `Recipe` out, or all that is wrong with it.

Reads no model and no data and imports nothing heavy: it answers at once.
"""

import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from core.config import Section
from core.errors import UserError
from core.hub import is_hub_name
from orchestration.assets import ASSET_PREFIX
from orchestration.recipe.config import Recipe
from orchestration.recipe.contradictions import Contradiction, contradictions
from orchestration.recipe.files import RecipeFile, Table, merged, read_files
from orchestration.recipe.problems import Key, Problem, Tables, dotted, explain, found, kind_of, tables_of
from orchestration.recipe.text import NONE, resolved_toml

_COMMAND_LINE, _IN_FLIGHT = "command line", "set in flight"
_PATH_KEYS = {"path", "token_file", "discovery_folder"}
"""Keys whose relative values start at the recipe's folder."""
_MODEL_KEY = re.compile(r"model\.path|rewards\.\d+\.path")
"""Of those, the ones that may be a name on the Hub: with a revision, or where there is no such folder."""

Source = Callable[[Key], str]
"""What says a key that a recipe sets: the path of a file, the command line, or an order in flight."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, after overrides such as `learner.learning_rate=1e-5` or `rewards.0.weight=0.5`.

    An override's value is read as TOML, or else taken as text. `"none"` switches an optional key off.
    Relative paths start at the folder of the file that says them, those of an override at the current folder;
    the recipe holds absolute ones. Raises one `UserError` with a line for every problem.
    """
    return load_with_sources(path, overrides)[0]


def load_with_sources(path: Path | str, overrides: Sequence[str] = ()) -> tuple[Recipe, Source]:
    """`load_recipe`, and what says each of the keys that are set."""
    return _load(read_files(Path(path)), overrides)


def changed_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run that has started, after overrides. Raises `UserError` as `load_recipe` does."""
    given = RecipeFile(Path("recipe.toml"), tomllib.loads(resolved_toml(recipe)))
    return _load([given], overrides, has_started=True)[0]


def _load(
    files: list[RecipeFile], overrides: Sequence[str], *, has_started: bool = False
) -> tuple[Recipe, Source]:
    data = merged(files)
    overriding = _IN_FLIGHT if has_started else _COMMAND_LINE
    lines: list[str] = []
    overridden: list[Key] = []
    for override in overrides:
        try:
            overridden.append(_apply(override, data))
        except ValueError as error:
            lines.append(f"{overriding}: {override}: {error}")

    def source(key: Key) -> str:
        # `zip` compares as far as the shorter goes: an override also answers for what is in and around it.
        touched = any(all(a == b for a, b in zip(key, other, strict=False)) for other in overridden)
        if touched:
            return overriding
        return str(next((file.path for file in files if file.says(key)), files[0].path))

    for table, key, field in _known_values(data, (Recipe,), ()):
        start = Path.cwd() if source(key) == overriding else Path(source(key)).parent
        name = str(key[-1])
        if not _is_on_hub(table, key, start):
            table[name] = _spell_out(table[name], name, field, start)
    recipe, problems = _validate(data)
    lines.extend(f"{source(problem.key)}: {problem}" for problem in problems)
    sections = dict(recipe) if recipe else _valid_sections(data)
    for contradiction in contradictions(sections, has_started=has_started):
        sources = dict.fromkeys(source(_split(key)) for key in contradiction.keys)
        lines.append(f"{' and '.join(sources)}: {_word(contradiction, sections, data)}")
    if lines:
        raise UserError("\n".join(lines))
    assert recipe is not None
    return recipe, source


def _apply(override: str, data: Table) -> Key:
    """Set one value in `data`; its key. Raises ValueError with the rule and a way out."""
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise ValueError("an override is KEY=VALUE; write it as in learner.learning_rate=1e-5")
    key = _split(name)
    table: Any = data
    for depth, part in enumerate(key):
        where = dotted(key[:depth])
        if isinstance(table, list) and part not in range(len(table)):
            raise ValueError(f"{where} has {len(table)} entries; give a position from 0 to {len(table) - 1}")
        if not isinstance(table, list | dict):
            raise ValueError(f"{where} is a value, not a table; set {where} itself")
        slot: Any = part if isinstance(table, list) else str(part)
        if depth == len(key) - 1:
            table[slot] = _parse_value(text)
        else:
            table = table[slot] if isinstance(table, list) else table.setdefault(slot, {})
    return key


def _parse_value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    is_one_value = document.keys() == {"value"} and not isinstance(document["value"], date | time)
    return document["value"] if is_one_value else text


def _split(name: str) -> Key:
    """A dotted key in parts; digits are positions."""
    return tuple(int(part) if part.isdecimal() else part for part in name.split("."))


def _known_values(table: Table, tables: Tables, key: Key) -> Iterator[tuple[Table, Key, FieldInfo]]:
    """Every value that has a field in the schema, with the table that it is in and its key."""
    fitting = [each for each in tables if len(tables) == 1 or kind_of(each) == table.get("kind")]
    fields = fitting[0].model_fields if fitting else {}
    for name, value in list(table.items()):
        if name in fields:
            yield table, (*key, name), fields[name]
            for position, inner in _tables_in(value):
                yield from _known_values(inner, tables_of(fields[name].annotation), (*key, name, *position))


def _tables_in(value: Any) -> list[tuple[Key, Table]]:
    """The value itself if it is a table, or the tables in an array, with their positions."""
    if isinstance(value, dict):
        return [((), value)]
    entries = enumerate(value) if isinstance(value, list) else ()
    return [((position,), entry) for position, entry in entries if isinstance(entry, dict)]


def _is_on_hub(table: Table, key: Key, start: Path) -> bool:
    """Whether the value is the name of a model on the Hugging Face Hub."""
    name = table[str(key[-1])]
    if not _MODEL_KEY.fullmatch(dotted(key)) or not isinstance(name, str) or not is_hub_name(name):
        return False
    return table.get("revision", NONE) != NONE or not (start / name).exists()


def _spell_out(value: Any, name: str, field: FieldInfo, start: Path) -> Any:
    """What TOML has no way to write: nothing, and a path that holds from everywhere."""
    if value == NONE and NoneType in get_args(field.annotation):
        return None
    if name in _PATH_KEYS and isinstance(value, str) and value and not value.startswith(ASSET_PREFIX):
        return os.path.abspath(start / os.path.expanduser(value))
    return value


def _validate(data: Table) -> tuple[Recipe | None, list[Problem]]:
    """The recipe if it has the right form, and what is wrong with each value by itself."""
    problems = {problem.key: problem for problem in _unusable_values(data, ())}
    recipe = None
    try:
        recipe = Recipe.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        for details in error.errors(include_url=False):
            problem = explain(details)
            problems.setdefault(problem.key, problem)
    return recipe, list(problems.values())


def _unusable_values(value: Any, key: Key) -> Iterator[Problem]:
    """What TOML can write and a recipe cannot use."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from _unusable_values(inner, (*key, name))
        case list():
            for position, inner in enumerate(value):
                yield from _unusable_values(inner, (*key, position))
        case float() if not math.isfinite(value):
            yield Problem(key, found(value), "must be a finite number", "set one, or leave it out")
        case date() | time():
            remedy = f'write text in quotes: "{value}"'
            yield Problem(key, found(value), "no key takes a date or a time", remedy)


def _valid_sections(data: Table) -> dict[str, object]:
    """Those sections of an invalid recipe that are valid by themselves, defaults included."""
    sections: dict[str, object] = {}
    for name, field in Recipe.model_fields.items():
        if name in data:
            try:
                adapter: TypeAdapter[object] = TypeAdapter(field.rebuild_annotation())
                sections[name] = adapter.validate_json(json.dumps(data[name], default=str), strict=True)
            except ValidationError:
                continue  # reported already, by `_validate`
        elif not field.is_required():
            sections[name] = field.default
    return sections


def _word(contradiction: Contradiction, sections: Mapping[str, Any], data: Table) -> Problem:
    key = _split(contradiction.keys[0])
    value: Any = sections
    written: Any = data
    for part in key:
        value = getattr(value, str(part)) if isinstance(value, Section) else value[part]
        inside = isinstance(written, list) or (isinstance(written, dict) and part in written)
        written = written[part] if inside else None
    default = " (the default)" if written is None else ""
    shown = " is not set" if value is None else f"{found(value)}{default}"
    return Problem(key, shown, contradiction.rule, contradiction.instead)
