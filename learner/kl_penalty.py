"""The KL of a step's tokens from the reference: what is taken off their rewards, and what the loss has of it.

| placement | estimator    | reward of token t | loss of token t |
| --------- | ------------ | ----------------- | --------------- |
| reward    | k1, k2, k3.. | - kl_coef * KL_t  | nothing         |
| reward    | exact        | - kl_coef * KL_t  | kl_coef * KL_t  |
| loss      | any          | nothing           | kl_coef * KL_t  |

Why the exact KL is in both. Over the whole vocabulary KL_t depends on the tokens before t and not on token t: in
the reward it is a baseline to token t, and says nothing to it. The gradient of the penalty has two parts (the
product rule and the score function),

    grad E[sum_t KL_t] = E[sum_t grad KL_t  +  sum_t grad log pi(a_t | s_t) sum_{u > t} KL_u],

of which the loss gives the first, at each state, and the reward the second: which tokens lead to states of much
KL. The sum is, in the reverse direction, in the mean the KL of whole completions (chain rule). In the forward
direction it is KL(reference || policy) at the states that the POLICY visits; the forward KL of whole completions
would take those that the reference visits. Exact in the loss alone is the first part: states are taken as given.

Both parts are weighed alike: by the aggregation, by what advantages were divided by, and by importance weights of
whole sequences. Per group (GRPO) they cannot be, and that is refused. The reward's part is as good as the
advantages are: gamma or gae_lambda below 1 cut its credit short.

Dimension key: B rollouts of this rank, T completion tokens (padded), N trained tokens of a packed row,
V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.decoding import Decoding
from learner.batch import Batch, MicroBatch, forward_all
from learner.config import KLConfig
from learner.engine import ZeroEngine
from learner.kl import full_kl, kl_estimate
from learner.lora import adapters_off


class KLPenalty:
    """The KL as `[kl]` has it, without its coefficient."""

    def __init__(self, config: KLConfig, *, policy: ZeroEngine, decoding: Decoding) -> None:
        self._config = config
        self._policy = policy
        self._decoding = decoding
        self.in_reward = config.placement == "reward"
        self.is_exact = config.estimator == "exact"
        self.in_loss = self.is_exact or not self.in_reward

    def of_tokens(self, batch: Batch, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """[B, T]: what the rewards lose: of the policy that sampled, or if exact of the policy before the step."""
        if self._config.estimator == "exact":

            def compute(row: MicroBatch) -> Tensor:
                return self._exact(self._logits(row, self._decoding), row)

            return forward_all(batch, micro_batches, compute)
        return kl_estimate(
            batch.behavior_logprobs_BT, batch.reference_logprobs_BT, estimator=self._config.estimator
        )

    def in_row(self, policy_N: Tensor, logits_NV: Tensor | None, micro_batch: MicroBatch) -> Tensor:
        """[N]: what the loss has, of the present policy and with its gradient. Logits are needed if exact."""
        if self._config.estimator == "exact":
            assert logits_NV is not None
            return self._exact(logits_NV, micro_batch)
        reference_N = micro_batch.select(micro_batch.batch.reference_logprobs_BT)
        return kl_estimate(policy_N, reference_N, estimator=self._config.estimator)

    def _exact(self, logits_NV: Tensor, micro_batch: MicroBatch) -> Tensor:
        """[N]: KL over the whole vocabulary. The base under the adapters is the reference, so that its
        logits need not cross from another process and no second model is held. Both models' logits of the row
        are, so a row takes N * V * 4 bytes more than with an estimator, and the backward pass as much again."""
        with torch.no_grad(), adapters_off(self._policy):
            reference_NV = self._logits(micro_batch, self._decoding.untruncated)
        return full_kl(logits_NV, reference_NV, direction=self._config.direction).cpu()

    def _logits(self, micro_batch: MicroBatch, decoding: Decoding) -> Tensor:
        return self._policy(micro_batch.row.to(self._policy.device), decoding, logits=True)
