"""Where the groups of a step come from: the policy samples them, or a dataset holds them.

The trainer asks for group 0, 1, 2, ... Group k is the same in every run of a recipe (of sampled ones: the prompt
and the seeds), so a resumed run goes on where it stopped.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from actors.config import SEEDS_PER_GROUP
from actors.rollout import RolloutPool
from core.messages import DemonstrationGroup, Prompt, RolloutGroup
from core.stream import SeededStream

RESAMPLED = 2**40
"""Added to a group's place in the prompt stream for each time that it is sampled anew."""


class GroupSource(Protocol):
    """Scored groups by number."""

    on_policy: bool
    """True if rollout workers sample the groups, so that they need every new version of the weights."""

    async def group(self, number: int) -> RolloutGroup: ...


class SampledGroups:
    """Completions of the present policy, by the rollout workers."""

    on_policy = True

    def __init__(
        self,
        pool: RolloutPool,
        prompts: SeededStream[Prompt],
        *,
        group_size: int,
        max_resamples: int,
        seed: int,
        resampled: Callable[[int], None],
    ) -> None:
        self._pool = pool
        self._prompts = prompts
        self._group_size = group_size
        self._max_resamples = max_resamples
        self._seed = seed
        self._resampled = resampled
        self._num_resampled = 0

    async def group(self, number: int) -> RolloutGroup:
        """The group with this number. One whose scores are all the same teaches nothing to a method that
        compares them; it is replaced by one of another prompt (DAPO's dynamic sampling, arXiv:2503.14476,
        sec. 3.2), `max_resamples` times at most."""
        first_seed = (self._seed * 1_000_003 + number) * SEEDS_PER_GROUP
        for attempt in range(self._max_resamples + 1):
            seeds = range(
                first_seed + attempt * self._group_size, first_seed + (attempt + 1) * self._group_size
            )
            group = await self._pool.roll_out(
                self._prompts[number + attempt * RESAMPLED], group_id=f"group-{number}", seeds=seeds
            )
            if attempt == self._max_resamples or len({rollout.score for rollout in group.rollouts}) > 1:
                break
            self._num_resampled += 1
            self._resampled(self._num_resampled)
        return group


class DatasetGroups:
    """Texts of datasets, mixed by weight, in a seeded order. The reference scores each once."""

    on_policy = False

    def __init__(
        self,
        pool: RolloutPool,
        datasets: Sequence[Sequence[DemonstrationGroup | RolloutGroup]],
        *,
        seed: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._pool = pool
        self._datasets = datasets
        self._stream = SeededStream(datasets, seed=seed, weights=weights)
        self._scored: dict[tuple[int, int], asyncio.Task[RolloutGroup]] = {}

    async def group(self, number: int) -> RolloutGroup:
        """The group with this number."""
        which, index = self._stream.place(number)
        if (which, index) not in self._scored:
            group = self._datasets[which][index]
            scoring = (
                self._pool.rescore(group)
                if isinstance(group, RolloutGroup)
                else self._pool.score_demonstrations(group)
            )
            self._scored[which, index] = asyncio.create_task(scoring)
        return await asyncio.shield(self._scored[which, index])
