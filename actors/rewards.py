"""Rewards: completions in, one number each out. Reward models and Python functions behind one interface."""

import importlib
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.config import RewardConfig, RewardFunctionReward, RewardModelReward, RewardServerReward
from actors.memory_limit import MemoryLimit, is_out_of_memory
from actors.reward_service.client import HttpReward
from core.config import ModelConfig
from core.errors import RewardError, UserError
from core.messages import Completion

RewardFunction = Callable[..., Sequence[float]]
"""TRL's signature: `reward(prompts, completions, **columns) -> list[float]`."""


class Reward(Protocol):
    """Anything that scores completions:

    scores = reward.score(completions)   # same length, same order, all finite
    """

    def score(self, completions: Sequence[Completion]) -> list[float]: ...


def load_reward(config: RewardConfig, path: Path | None, model_path: Path, model: ModelConfig) -> Reward:
    """The reward of a recipe's section. `path`: folder of a reward model. Raises `UserError`."""
    match config:
        case RewardModelReward():
            assert path is not None, "reward models are found before processes start"
            # torch stays out of processes that only call a function or a server.
            from actors.reward_model import RewardModel
            from core.device import device_of

            device = device_of(f"rewards ({config.name})", config.resources)
            return RewardModel(path, model_path, model, device=device)
        case RewardFunctionReward():
            return FunctionReward(config.function, memory_gib=config.memory_gib)
        case RewardServerReward():
            return HttpReward(config)


class FunctionReward:
    """A user's Python function. What it returns is checked: a failure never becomes a zero."""

    def __init__(self, reference: str, *, memory_gib: float | None = None) -> None:
        self._name = reference
        self._limit = MemoryLimit(memory_gib)
        self.exhausted = False
        """It reached its memory limit, and may still hold what filled it: its process is to be replaced."""
        with self._limit:
            self._function = load_function(reference)

    def score(self, completions: Sequence[Completion]) -> list[float]:
        """Call the function once for the batch. Raises `RewardError` naming it for anything but floats."""
        shared = set.intersection(*(set(completion.prompt.columns) for completion in completions))
        columns: dict[str, list[Any]] = {
            name: [completion.prompt.columns[name] for completion in completions] for name in sorted(shared)
        }
        try:
            with self._limit:
                scores = self._function(
                    [completion.prompt.text for completion in completions],
                    [completion.text for completion in completions],
                    **columns,
                )
        except Exception as error:
            if self._limit.gib is not None and is_out_of_memory(error):
                self.exhausted = True
                traceback.clear_frames(error.__traceback__)  # they hold what it has allocated
                raise RewardError(
                    f"reward function {self._name} reached its limit of {self._limit.gib:g} GiB of memory: "
                    "raise memory_gib in its [[rewards]] table, or let it keep less"
                ) from error
            raise RewardError(
                f"reward function {self._name} raised {type(error).__name__}: {error}"
            ) from error
        return self._checked(scores, len(completions))

    def _checked(self, scores: Any, wanted: int) -> list[float]:
        try:
            values = [float(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward function {self._name} must return a list of numbers, not {scores!r:.80} ({error})"
            ) from error
        if len(values) != wanted:
            raise RewardError(
                f"reward function {self._name} returned {len(values)} rewards for {wanted} completions; "
                "return one for each, in their order"
            )
        bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
        if bad:
            raise RewardError(
                f"reward function {self._name} returned {values[bad[0]]} for completion {bad[0]} of its batch; "
                "rewards must be finite"
            )
        return values


def load_function(reference: str) -> RewardFunction:
    """The function behind `module:name`. Raises `UserError` if there is none."""
    module_name, _, name = reference.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(
            f"rewards: function {reference!r} cannot be loaded ({str(error) or type(error).__name__}). Give "
            "`module:name` of a function that Python can import from the folder where `leash` runs."
        ) from error
    if not callable(function):
        raise UserError(f"rewards: {reference!r} is a {type(function).__name__}, not a function")
    loaded: RewardFunction = function
    return loaded
