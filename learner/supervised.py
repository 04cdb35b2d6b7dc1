"""Likelihood of chosen completions: supervised fine-tuning, and rejection sampling where they were sampled.

    completions of a step -> all, or the best by score -> mean negative log-likelihood of their tokens

Dimension key: B completions of this rank, T completion tokens (padded), N trained tokens of a packed row.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from learner.algorithm_config import SFTConfig
from learner.batch import Batch, MicroBatch
from learner.engine import ZeroEngine
from learner.losses import Metrics, mean_over_tokens
from learner.objective import Targets
from learner.process_group import all_gather


class SupervisedFineTuning:
    """Every token of the chosen completions weighs the same."""

    keeps_groups = False

    def __init__(self, config: SFTConfig, *, policy: ZeroEngine, learning_rate: float) -> None:
        self._config = config
        self._policy = policy
        self.learning_rate = learning_rate

    def targets(self, batch: Batch, micro_batches: Sequence[MicroBatch], *, step: int) -> Targets:
        """The completions themselves."""
        return {}

    def members(self, batch: Batch) -> list[int]:
        """All completions, or the `top_k` by score of each prompt or of the whole step."""
        everyone = list(range(len(batch)))
        if self._config.top_k is None:
            return everyone
        if self._config.top_k_of == "step":
            return best_of_step(batch, self._config.top_k)
        return [m for group in batch.members_of_groups() for m in best_of(group, batch, self._config.top_k)]

    def counts(self, batch: Batch, members: Sequence[int]) -> dict[str, float]:
        return {"tokens": float(batch.mask_BT[list(members)].sum())}

    def accumulate(
        self, micro_batch: MicroBatch, targets: Targets, counts: Mapping[str, float], *, last: bool
    ) -> Metrics:
        """Forward and backward of one packed row."""
        logprobs_N = self._policy(micro_batch.row.to(self._policy.device)).cpu()
        loss = mean_over_tokens(
            -logprobs_N, micro_batch.mask_N, aggregation="token", normalizer=counts["tokens"]
        )
        self._policy.backward(loss, last=last)
        return {"policy_loss": loss.detach()}

    def update(self, scheduled: Callable[[float], float]) -> dict[str, float]:
        """One optimizer step."""
        return {"gradient_norm": self._policy.step(scheduled(self.learning_rate))}


def best_of(group: Sequence[int], batch: Batch, top_k: int) -> list[int]:
    """The `top_k` best scored of some rollouts, in their order; of equal scores the first."""
    ranked = sorted(group, key=lambda member: -float(batch.scores_B[member]))
    return sorted(ranked[:top_k])


def best_of_step(batch: Batch, top_k: int) -> list[int]:
    """This rank's share of the `top_k` best scores of all ranks; of equal scores those of the step's first groups.
    All ranks must call."""
    own = torch.distributed.get_rank()
    entries = zip(batch.scores_B.tolist(), batch.group_ids_B.tolist(), range(len(batch)), strict=True)
    gathered = all_gather([(-score, place, member, own) for score, place, member in entries])
    return sorted(member for _, _, member, rank in sorted(gathered)[:top_k] if rank == own)
