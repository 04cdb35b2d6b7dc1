"""Which values of a recipe are not the defaults, and what says so."""

from collections.abc import Iterator
from dataclasses import dataclass

from core.config import Section
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import Source
from orchestration.recipe.problems import Key, dotted


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value that somebody has chosen."""

    key: str
    value: object
    source: str
    """A file, or the command line."""


def settings(recipe: Recipe, source: Source) -> list[Setting]:
    """Every value that differs from its default, or has none, in the recipe's order."""
    return [
        Setting(key=dotted(key), value=value, source=source(key)) for key, value in _chosen(recipe, None, ())
    ]


def _chosen(section: Section, default: Section | None, key: Key) -> Iterator[tuple[Key, object]]:
    """`default`: the section as it is if nobody says anything about it."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        usual = getattr(default, name) if isinstance(default, type(section)) else field.get_default()
        if isinstance(value, Section) and usual is None:
            yield from (((*key, name, inner), getattr(value, inner)) for inner in type(value).model_fields)
        elif isinstance(value, Section):
            yield from _chosen(value, usual if isinstance(usual, Section) else None, (*key, name))
        elif isinstance(value, list) and any(isinstance(item, Section) for item in value):
            for place, item in enumerate(value):
                yield from _chosen(item, None, (*key, name, place))
        elif value != usual and name in section.model_fields_set:
            yield (*key, name), value
