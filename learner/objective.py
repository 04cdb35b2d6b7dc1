"""What a step minimizes, as the learner sees it: the interface between its loop and the methods.

policy_gradient.py   PPO, GRPO, RLOO, REINFORCE++: advantages and the clipped surrogate
supervised.py        SFT and rejection sampling: likelihood of chosen completions
preference.py        DPO, RPO, REBEL: log-ratios of a pair
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from learner.batch import Batch, MicroBatch
from learner.losses import Metrics

Targets = Mapping[str, Tensor]
"""What the losses of a step aim at, each [B, T] and without gradient; the objective names them."""


class Objective(Protocol):
    """A method's share in a step. All ranks call everything together: engines compute collectively.

    targets = objective.targets(batch, micro_batches, step=version)
    members = objective.members(batch)
    for micro_batch in ...:
        metrics = objective.accumulate(micro_batch, targets, counts, last=...)   # loss and backward
    metrics = objective.update(scheduled)                                            # optimizer step
    """

    keeps_groups: bool
    """True if the loss compares rollouts of a group, so that they must share a micro-batch."""

    learning_rate: float
    """Peak of the policy's. It may be another from one step to the next."""

    def targets(self, batch: Batch, micro_batches: Sequence[MicroBatch], *, step: int) -> Targets: ...

    def members(self, batch: Batch) -> list[int]:
        """The rollouts that are learned from."""
        ...

    def counts(self, batch: Batch, members: Sequence[int]) -> dict[str, float]:
        """How many of each thing that a loss is a mean over these rollouts hold; to be summed over ranks."""
        ...

    def accumulate(
        self, micro_batch: MicroBatch, targets: Targets, counts: Mapping[str, float], *, last: bool
    ) -> Metrics: ...

    def update(self, scheduled: Callable[[float], float]) -> dict[str, float]:
        """One optimizer step of every network; `scheduled` turns a peak learning rate into the present one."""
        ...
