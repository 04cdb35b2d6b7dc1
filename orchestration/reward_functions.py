"""A recipe's Python rewards, looked for before anything starts: what is mistyped must not cost minutes first."""

from collections.abc import Iterator

from actors.config import RewardFunctionReward
from actors.function_lookup import what_is_wrong
from core.errors import UserError
from orchestration.recipe.config import Recipe


def missing_functions(recipe: Recipe) -> Iterator[str]:
    """A line for each reward function that cannot be imported on this machine, from this folder."""
    for index, reward in enumerate(recipe.rewards):
        if not isinstance(reward, RewardFunctionReward):
            continue
        if problem := what_is_wrong(reward.function):
            yield (
                f'rewards.{index}.function = "{reward.function}": {problem}; give `module:name` of a function '
                "that Python can import from the folder where `leash` runs"
            )


def require_functions(recipe: Recipe) -> None:
    """For a run whose processes are all on this machine. Raises `UserError` that names all that are missing."""
    if missing := list(missing_functions(recipe)):
        raise UserError("\n".join(missing))
