"""A recipe back into TOML: bare for the run folder, annotated for people. Both load again as they are."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from core.config import Resources, Section
from orchestration.recipe.config import Recipe

NONE = "none"
"""What a recipe writes where a key may be switched off: TOML has no null."""
_COMMENT_COLUMN = 38
"""Where comments start: right of nearly every `key = value`."""


def resolved_toml(recipe: Recipe) -> str:
    """Every key with its value, defaults included: `load_recipe` makes an equal recipe of it."""
    return "\n".join(_table(recipe, (), annotate=False)) + "\n"


def describe(recipe: Recipe) -> str:
    """`resolved_toml` with what the run amounts to on top and the help text beside every key."""
    return "\n".join([*_summary(recipe), "", *_table(recipe, (), annotate=True)]) + "\n"


def toml_value(value: object) -> str:
    """A value as it is written right of the equals sign."""
    match value:
        case None:
            return f'"{NONE}"'
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's too, but TOML wants DEL escaped, and takes no surrogate pairs.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case float() if not math.isfinite(value):
            return str(value)
        case Mapping():
            inner = ", ".join(f"{_key(str(key))} = {toml_value(item)}" for key, item in value.items())
            return f"{{{inner}}}"
        case Sequence():
            return f"[{', '.join(toml_value(item) for item in value)}]"
        case _:
            return str(value)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "_").isidentifier()
    return key if bare else toml_value(key)


def _table(section: Section, path: tuple[str, ...], *, annotate: bool) -> Iterator[str]:
    """The table's own keys, then, since TOML has no way back, the tables inside it."""
    tables: list[tuple[str, Section]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        dotted = ".".join((*path, name))
        if isinstance(value, Section):
            tables.append((f"[{dotted}]", value))
        elif isinstance(value, list) and any(isinstance(item, Section) for item in value):
            tables.extend((f"[[{dotted}]]", item) for item in value)
        elif value is not None or field.default is not None or annotate:
            unset = value is None and field.default is None
            line = f"# {name} =" if unset else f"{name} = {toml_value(value)}"
            default = "" if unset or name in section.model_fields_set else "(default) "
            comment = f"# {default}{_first_sentence(field.description)}" if field.description else ""
            yield f"{line:<{_COMMENT_COLUMN}}  {comment}".rstrip() if annotate else line
    for header, table in tables:
        yield ""
        yield header
        yield from _table(table, (*path, header.strip("[]").rsplit(".", 1)[-1]), annotate=annotate)


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].split("; ")[0].rstrip(".")


def _summary(recipe: Recipe) -> Iterator[str]:
    trainer, rollout = recipe.trainer, recipe.rollout
    completions = trainer.steps * trainer.prompts_per_step * rollout.group_size
    yield (
        f"# {recipe.name}: {trainer.steps} steps of {trainer.prompts_per_step} prompts x "
        f"{rollout.group_size} completions of up to {rollout.max_new_tokens} tokens, {completions} in all"
    )
    processes: list[tuple[str, int, Resources]] = [
        ("rollout worker", rollout.workers, rollout.resources),
        ("reference scorer", recipe.reference.num_scorers, recipe.reference.resources),
        *((f"server of {reward.name}", reward.replicas, reward.resources) for reward in recipe.rewards),
        ("learner rank", recipe.learner.world_size, recipe.learner.resources),
    ]
    cpus = sum(count * resources.num_cpus for _, count, resources in processes)
    gpus = sum(count * resources.num_gpus for _, count, resources in processes)
    listing = ", ".join(f"{count} {kind}" for kind, count, _ in processes)
    yield f"# asks Ray for {cpus:g} CPUs and {gpus:g} GPUs: {listing}"
