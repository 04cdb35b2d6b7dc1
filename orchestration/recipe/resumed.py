"""What may be another in a resumed run: where and how its processes run, and not what they compute.

Other learner ranks sum in another order, so that they compute the same up to rounding.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestration.recipe.config import Recipe

MAY_CHANGE = re.compile(
    r"rollout\.(workers|autoscale)\b|reference\.replicas$|.*\bresources\."
    r"|learner\.(world_size|zero_stage|offload)$|rewards\.\d+\.(replicas|url|token_env|token_file|timeout_s|retries)$"
    r"|(cluster|dashboard|deadlines|faults|metrics|alarm|trackers)\.|trainer\.(checkpoint_every|keep_checkpoints|save_model)$"
)


def changed_settings(started: Recipe, resumed: Recipe) -> list[str]:
    """Keys of another value that change what the run computes, each with both values."""
    before, now = (dict(_leaves(recipe.model_dump(), ())) for recipe in (started, resumed))
    keys = [key for key in [*before, *(now.keys() - before.keys())] if not MAY_CHANGE.match(key)]
    return [
        f"{key} was {before.get(key, 'not set')!r}, and is {now.get(key, 'not set')!r}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is no table."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, str(name)))
    elif isinstance(value, Sequence) and any(isinstance(item, Mapping) for item in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, str(index)))
    else:
        yield ".".join(path), value
