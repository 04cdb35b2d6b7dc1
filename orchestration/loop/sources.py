"""Where the groups of a step come from: the policy samples them, or a dataset holds them.

The trainer asks for group 0, 1, 2, ... Group k is the same in every run of a recipe (of sampled ones: the prompt
and the seeds), so a resumed run goes on where it stopped.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from actors.config import SEEDS_PER_GROUP
from actors.rollout import RolloutPool
from core.errors import RetriesExhausted, RewardError
from core.messages import DemonstrationGroup, Prompt, RolloutGroup
from core.stream import SeededStream
from orchestration.recipe.config import Recipe

RESAMPLED = 2**40
"""Added to a group's place in the prompt stream for each time that it is sampled anew."""
MAX_FAILED = 5
"""Prompts tried for one group if each fails: then it is not the prompts."""
NO_SPREAD = "no spread"
LOST = "workers lost"
REWARD_FAILED = "reward failed"


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
        replace_lost: bool = True,
        replace_unrewarded: bool = False,
        seed: int,
        on_discard: Callable[[int, int, str], None],
    ) -> None:
        """Groups that were lost with every worker that tried them, or whose reward failed, are replaced by another
        prompt's if that is asked for. `on_discard` hears of a group's number, how many completions it gave up, and
        why."""
        self._pool = pool
        self._prompts = prompts
        self._group_size = group_size
        self._max_resamples = max_resamples
        self._replaced: dict[type[Exception], str] = {RetriesExhausted: LOST} if replace_lost else {}
        self._replaced |= {RewardError: REWARD_FAILED} if replace_unrewarded else {}
        self._seed = seed
        self._on_discard = on_discard

    async def group(self, number: int) -> RolloutGroup:
        """The group with this number. One whose scores are all the same teaches nothing to a method that
        compares them; it is replaced by one of another prompt (DAPO's dynamic sampling, arXiv:2503.14476,
        sec. 3.2), `max_resamples` times at most. So is one that failed, where that is asked for."""
        resampled = failed = 0
        while True:
            try:
                group = await self._sample(number, attempt=resampled + failed)
            except tuple(self._replaced) as error:
                failed += 1
                self._on_discard(number, self._group_size, self._replaced[type(error)])
                if failed > MAX_FAILED:
                    raise
                continue
            if resampled == self._max_resamples or len({rollout.score for rollout in group.rollouts}) > 1:
                return group
            resampled += 1
            self._on_discard(number, self._group_size, NO_SPREAD)

    async def _sample(self, number: int, *, attempt: int) -> RolloutGroup:
        first = (self._seed * 1_000_003 + number) * SEEDS_PER_GROUP + attempt * self._group_size
        return await self._pool.roll_out(
            self._prompts[number + attempt * RESAMPLED],
            group_id=f"group-{number}",
            seeds=range(first, first + self._group_size),
        )


class GroupLedger(Protocol):
    """Who keeps what was sampled until it is trained on: `orchestration.ledger.ledger.Ledger`."""

    def durable(self, number: int) -> RolloutGroup | None: ...

    def lease(self, number: int) -> Any: ...

    def acknowledge(self, lease: Any, group: RolloutGroup) -> bool: ...


class JournaledGroups:
    """Groups of another source, each journaled once. What an earlier driver has sampled is not sampled again."""

    def __init__(self, source: GroupSource, ledger: GroupLedger) -> None:
        self.on_policy = source.on_policy
        self._source = source
        self._ledger = ledger

    async def group(self, number: int) -> RolloutGroup:
        """The group that was acknowledged under this number, whoever sampled it."""
        if (kept := self._ledger.durable(number)) is not None:
            return kept
        lease = self._ledger.lease(number)
        group = await self._source.group(number)
        if self._ledger.acknowledge(lease, group):
            return group
        accepted = self._ledger.durable(number)
        assert accepted is not None, f"group {number} was refused, and nothing else was accepted"
        return accepted


def sampled_groups(
    recipe: Recipe,
    prompts: Sequence[Prompt],
    pool: RolloutPool,
    ledger: GroupLedger,
    *,
    on_discard: Callable[[int, int, str], None],
) -> JournaledGroups:
    """What the policy makes of the prompts, as a recipe has it, in the ledger."""
    sampled = SampledGroups(
        pool,
        SeededStream([prompts], seed=recipe.seed),
        group_size=recipe.rollout.group_size,
        max_resamples=recipe.rollout.max_resamples,
        replace_lost=recipe.faults.on_lost_group == "drop",
        replace_unrewarded=recipe.faults.on_reward_error == "drop",
        seed=recipe.seed,
        on_discard=on_discard,
    )
    return JournaledGroups(sampled, ledger)


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
        """The group with this number, and with a name of its own: groups of two datasets may have the same, and
        those of a small one come several times in a step."""
        which, index = self._stream.place(number)
        if (which, index) not in self._scored:
            group = self._datasets[which][index]
            scoring = (
                self._pool.rescore(group)
                if isinstance(group, RolloutGroup)
                else self._pool.score_demonstrations(group)
            )
            self._scored[which, index] = task = asyncio.create_task(scoring)
            task.add_done_callback(lambda task: self._forget_failed(which, index, task))
        scored = await asyncio.shield(self._scored[which, index])
        return replace(scored, group_id=f"group-{number}-of-dataset-{which}")

    def _forget_failed(self, which: int, index: int, task: asyncio.Task[RolloutGroup]) -> None:
        """Who asks again must not hear of a learner that has been replaced since."""
        if task.cancelled() or task.exception() is not None:
            del self._scored[which, index]
