"""What pydantic finds wrong with a recipe, in words: the key, its value, the rule, what to set instead.

A rule is worded from the schema (type, bounds, choices), not from pydantic's message, so that the line says
all that the key accepts, whichever part of it was broken.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from core.config import Section
from orchestration.recipe.config import Recipe
from orchestration.recipe.text import NONE, toml_value

Key = tuple[str | int, ...]
"""Where a value is in a recipe: names of keys, and positions in arrays."""
Tables = tuple[type[Section], ...]
"""The tables that may stand in one place: one, or one for each `kind`."""

_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list[str]: "an array of texts",
}
_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
_CHOICES_PATTERN = re.compile(r"\^\((\w+(?:\|\w+)*)\)\$")
MOST_PLACES = 2
"""A key of this name elsewhere is what was meant, if it is in so few places; else a name that looks like it."""
_LONGEST_VALUE = 60
"""Characters of a value that a message shows."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct."""

    key: Key
    found: str
    """What stands there: ` = 3`, ` is missing`."""
    rule: str
    instead: str

    def __str__(self) -> str:
        return f"{dotted(self.key)}{self.found}: {self.rule}; {self.instead}"


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def found(value: object) -> str:
    """How a message shows a value."""
    text = toml_value(value)
    return f" = {text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + '...'}"


def tables_of(annotation: Any) -> Tables:
    """The tables that a field holds, itself or in an array; none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(table for inner in get_args(annotation) for table in tables_of(inner))


def kind_of(table: type[Section]) -> str | None:
    """The value of `kind` that chooses this table, if it is one of several."""
    field = table.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field else None


def explain(error: ErrorDetails) -> Problem:
    """One error of `Recipe.model_validate_json`."""
    key, table, field = _place(error["loc"])
    match error["type"]:
        case "extra_forbidden":
            return Problem(key, found(error["input"]), "unknown key", _suggest(key, table))
        case "missing" if field:
            where = f"under [{dotted(key[:-1])}]" if key[1:] else "at the top"
            table_below = tables_of(field.annotation)
            instead = f"add {_header(key, field)}" if table_below else f"add it {where}{_help(field)}"
            return Problem(key, " is missing", f"must be {_expectation(field)}", instead)
        case "union_tag_invalid" | "union_tag_not_found" if field:
            kinds = [str(kind_of(variant)) for variant in tables_of(field.annotation)]
            value = error["input"].get("kind")
            close = difflib.get_close_matches(str(value), kinds, n=1)
            instead = f"did you mean {toml_value(close[0])}?" if close else f"set {toml_value(kinds[0])}, say"
            shown = " is missing" if value is None else found(value)
            return Problem((*key, "kind"), shown, f"must be {_one_of(kinds)}", instead)
        case "dict_type" | "model_type" if isinstance(key[-1], int):
            header = f"[[{dotted(key[:-1])}]]"
            return Problem(key, found(error["input"]), "must be a table", f"write it as {header}")
        case _ if field:
            value = error["input"]
            return Problem(key, found(value), f"must be {_expectation(field)}", _remedy(key, field, value))
    return Problem(key, found(error["input"]), error["msg"], "correct it")


def _place(location: Key) -> tuple[Key, type[Section], FieldInfo | None]:
    """The key of a pydantic location, the table that the key is in, and its field if it is known."""
    key: Key = ()
    tables: Tables = (Recipe,)
    table: type[Section] = Recipe
    field: FieldInfo | None = None
    for part in location:
        if isinstance(part, int) or not tables:
            key += (part,)
        elif len(tables) > 1:  # where there are several kinds, pydantic names the kind as if it were a key
            tables = tuple(variant for variant in tables if kind_of(variant) == part)
        else:
            table, key = tables[0], (*key, part)
            field = table.model_fields.get(part)
            tables = tables_of(field.annotation) if field else ()
    return key, table, field


def _expectation(field: FieldInfo) -> str:
    """All that a field accepts."""
    annotation, optional = _without_none(field)
    choices, pattern = _choices(field), _constraint(field, "pattern")
    if choices:
        text = _one_of(choices)
    elif tables_of(annotation):
        text = "an array of tables" if get_origin(annotation) is list else "a table"
    else:
        text = _TYPES.get(annotation, str(annotation))
    bounds = ((word, _constraint(field, name)) for name, word in _BOUNDS)
    bounds_text = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
    text += f", {bounds_text}" if bounds_text else ""
    text += " with at least one entry" if _constraint(field, "min_length") else ""
    text += f" that matches {pattern}" if pattern and not choices else ""
    return f"{text}, or {toml_value(NONE)}" if optional and not tables_of(annotation) else text


def _remedy(key: Key, field: FieldInfo, value: object) -> str:
    """What to write instead of `value`."""
    annotation, _ = _without_none(field)
    if tables_of(annotation):
        return f"write it as {_header(key, field)}"
    choices = _choices(field)
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    if close:
        return f"did you mean {toml_value(close[0])}?"
    if annotation is str and not isinstance(value, str):
        return f"write it in quotes: {toml_value(toml_value(value))}"
    if annotation == list[str] and isinstance(value, str):
        return f"write it as {toml_value([value])}"
    if annotation in (int, float) and isinstance(value, str) and _is_number(value):
        return f"write {value} without quotes"
    pattern = _constraint(field, "pattern")
    for candidate in _respellings(value) if pattern else ():
        if re.search(pattern, candidate):
            return f"set {toml_value(candidate)}, say"
    if field.default is None:
        return "correct it, or leave it out"
    if not field.is_required():
        return f"set {toml_value(field.get_default(call_default_factory=True))}, the default"
    lowest = _constraint(field, "ge")
    return f"correct it{_help(field)}" if lowest is None else f"set {lowest} or more"


def _suggest(key: Key, table: type[Section]) -> str:
    """The known key that an unknown one probably meant: of this name elsewhere, or nearly so here."""
    name = str(key[-1])
    same_place = tuple(0 if isinstance(part, int) else part for part in key)
    elsewhere = dict(known for known in _known_keys((Recipe,), ()) if known[0][-1] == name)
    if same_place in elsewhere:
        kind = toml_value(kind_of(elsewhere[same_place]))
        return f"set {dotted((*key[:-1], 'kind'))} = {kind}, which knows it, or remove it"
    close = difflib.get_close_matches(name, table.model_fields, n=1)
    if close and not 1 <= len(elsewhere) <= MOST_PLACES:
        return f"did you mean {dotted((*key[:-1], close[0]))}?"
    if elsewhere:
        return f"did you mean {' or '.join(dotted(known) for known in elsewhere)}?"
    where = f"[{dotted(key[:-1])}]" if key[1:] else "a recipe"
    return f"the keys of {where} are {', '.join(table.model_fields)}"


def _header(key: Key, field: FieldInfo) -> str:
    """How the table or array of tables is opened."""
    return f"[[{dotted(key)}]]" if get_origin(field.annotation) is list else f"[{dotted(key)}]"


def _known_keys(tables: Tables, key: Key) -> Iterator[tuple[Key, type[Section]]]:
    """Every key there is, with its table; an array stands for its first entry."""
    for table in tables:
        for name, field in table.model_fields.items():
            yield (*key, name), table
            position: Key = (0,) if get_origin(field.annotation) is list else ()
            yield from _known_keys(tables_of(field.annotation), (*key, name, *position))


def _without_none(field: FieldInfo) -> tuple[Any, bool]:
    """The field's type less `None`, and whether that was allowed."""
    members = [member for member in get_args(field.annotation) if member is not NoneType]
    optional = len(members) < len(get_args(field.annotation))
    return (members[0], True) if optional else (field.annotation, False)


def _constraint(field: FieldInfo, name: str) -> Any:
    """A bound or a pattern of the field, or None."""
    values = (getattr(item, name, None) for item in field.metadata)
    return next((value for value in values if value is not None), None)


def _choices(field: FieldInfo) -> list[object]:
    """The values of a field that takes one of a few."""
    annotation, _ = _without_none(field)
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    match = _CHOICES_PATTERN.fullmatch(_constraint(field, "pattern") or "")
    return list(match[1].split("|")) if match else []


def _one_of(choices: list[Any]) -> str:
    return "one of " + ", ".join(toml_value(choice) for choice in choices)


def _respellings(value: object) -> Iterator[str]:
    """What someone who wrote `value` may have meant for a key that wants another form of text."""
    if isinstance(value, str):
        yield ":".join(value.rsplit(".", 1))
        for separator in "_-":
            yield re.sub("[^a-z0-9]+", separator, value.lower()).strip(separator)


def _is_number(text: str) -> bool:
    try:
        return isinstance(tomllib.loads(f"value = {text}").get("value"), int | float)
    except tomllib.TOMLDecodeError:
        return False


def _help(field: FieldInfo) -> str:
    return f" ({' '.join(field.description.split())})" if field.description else ""
