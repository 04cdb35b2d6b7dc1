"""Policy gradients: scores and KL of a step's rollouts -> advantages -> loss.

    scores, KL -> token rewards -> advantages (GAE | group | leave-one-out) -> surrogate + KL + entropy terms

Dimension key: B rollouts of this rank, T completion tokens (padded), N trained tokens of a row, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from core.decoding import Decoding
from core.models import logprobs_of
from learner.advantages import (
    STD_EPSILON,
    gae,
    group_advantages,
    kl_penalized_rewards,
    leave_one_out_advantages,
    overlong_penalty,
)
from learner.algorithm_config import (
    A2CConfig,
    ActorCriticConfig,
    ClippedConfig,
    GRPOConfig,
    PolicyGradientAlgorithm,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from learner.batch import Batch, MicroBatch, forward_all
from learner.config import KLConfig
from learner.engine import ZeroEngine
from learner.kl import kl_estimate
from learner.kl_controllers import KLController
from learner.kl_penalty import KLPenalty
from learner.losses import (
    Metrics,
    entropy,
    importance_weights,
    logprob_gap,
    mean_over_tokens,
    ppo_policy_loss,
    sequence_ratio_logprobs,
    value_loss,
)
from learner.objective import Targets
from learner.target_metrics import moments, whitened


class PolicyGradient:
    """PPO, A2C, GRPO, RLOO or REINFORCE++, as the configuration says."""

    keeps_groups = False

    def __init__(
        self,
        config: PolicyGradientAlgorithm,
        kl: KLConfig,
        kl_controller: KLController,
        *,
        policy: ZeroEngine,
        value_model: ZeroEngine | None,
        learning_rate: float,
        decoding: Decoding,
        max_new_tokens: int,
    ) -> None:
        assert (value_model is not None) == isinstance(config, ActorCriticConfig)
        self._config = config
        self._kl = KLPenalty(kl, policy=policy, decoding=decoding)
        self._kl_controller = kl_controller
        self._policy = policy
        self._value_model = value_model
        self.learning_rate = learning_rate
        self._decoding = decoding
        self._max_new_tokens = max_new_tokens
        self._trains_policy = True

    def targets(self, batch: Batch, micro_batches: Sequence[MicroBatch], *, step: int) -> Targets:
        """Advantages, the log-probs that ratios are taken to, and with a value model its targets."""
        self._trains_policy = step >= getattr(self._config, "value_warmup_steps", 0)
        kl_BT = self._kl.of_tokens(batch, micro_batches) if self._kl.in_reward else None
        targets, scale = self._advantages(batch, self._token_rewards(batch, kl_BT), micro_batches)
        kl_weights_BT = torch.full_like(batch.behavior_logprobs_BT, scale if self._kl.in_reward else 1.0)
        targets["ratio_logprobs"] = batch.behavior_logprobs_BT
        if isinstance(self._config, ClippedConfig) and self._config.importance_sampling != "none":
            policy_logprobs_BT = forward_all(batch, micro_batches, self._policy_logprobs)
            targets["ratio_logprobs"] = policy_logprobs_BT
            weights_BT = importance_weights(
                policy_logprobs_BT,
                batch.behavior_logprobs_BT,
                batch.mask_BT,
                level=self._config.importance_sampling,
                cap=self._config.importance_cap,
            )
            targets["advantages"] = targets["advantages"] * weights_BT
            if self._kl.in_reward and self._config.importance_sampling == "sequence":
                kl_weights_BT = kl_weights_BT * weights_BT
        return {**targets, "kl_weights": kl_weights_BT} if self._kl.in_loss else targets

    def members(self, batch: Batch) -> list[int]:
        """Every rollout."""
        return list(range(len(batch)))

    def counts(self, batch: Batch, members: Sequence[int]) -> dict[str, float]:
        """Tokens; and what the policy's loss is a mean over: tokens, sequences, or a constant a sequence."""
        num_tokens = float(batch.mask_BT[list(members)].sum())
        normalizers = {
            "token": num_tokens,
            "sequence": len(members),
            "constant": len(members) * self._max_new_tokens,
        }
        return {"tokens": num_tokens, "normalizer": float(normalizers[self._config.aggregation])}

    def accumulate(
        self, micro_batch: MicroBatch, targets: Targets, counts: Mapping[str, float], *, last: bool
    ) -> Metrics:
        """Forward and backward of one packed row, through the policy and the value model."""
        behavior_N = micro_batch.select(micro_batch.batch.behavior_logprobs_BT)
        policy_N, terms, metrics = self._policy_terms(micro_batch, targets, counts)
        loss, surrogate_metrics = self._surrogate(policy_N, micro_batch, targets, counts["normalizer"])
        metrics |= surrogate_metrics
        metrics |= logprob_gap(policy_N.detach(), behavior_N, micro_batch.mask_N, counts["tokens"])
        if self._trains_policy:
            self._policy.backward(loss + terms, last=last)
        if self._value_model is not None:
            metrics |= self._accumulate_value(micro_batch, targets, counts["tokens"], last=last)
        return metrics

    def _surrogate(
        self, policy_N: Tensor, micro_batch: MicroBatch, targets: Targets, normalizer: float
    ) -> tuple[Tensor, Metrics]:
        """What makes tokens with a positive advantage likelier."""
        config, mask_N, ids_N = self._config, micro_batch.mask_N, micro_batch.sequence_ids_N
        advantages_N = micro_batch.select(targets["advantages"])
        if not isinstance(config, ClippedConfig):
            loss = self._mean(-advantages_N * policy_N, micro_batch, normalizer)
            weight = self._mean(torch.ones_like(advantages_N), micro_batch, normalizer)
            return loss, {"policy_loss": loss.detach(), "loss_weight": weight}
        clip_low, clip_high = config.clip_range
        ratio_N, old_N = policy_N, micro_batch.select(targets["ratio_logprobs"])
        if config.ratio == "sequence":
            ratio_N = sequence_ratio_logprobs(policy_N, old_N, mask_N, ids_N)
        loss, metrics = ppo_policy_loss(
            ratio_N,
            old_N,
            advantages_N,
            mask_N,
            clip_low=clip_low,
            clip_high=clip_high,
            dual_clip=config.dual_clip,
            aggregation=config.aggregation,
            normalizer=normalizer,
            sequence_ids=ids_N,
        )
        if config.ratio == "sequence":  # the loss has only seen means, in which tokens cancel
            kl_N = kl_estimate(old_N, policy_N.detach(), estimator="k3")
            metrics["approx_kl"] = self._mean(kl_N, micro_batch, normalizer)
        return loss, metrics

    def update(self, scheduled: Callable[[float], float]) -> dict[str, float]:
        """One optimizer step of the policy, and of the value model."""
        metrics = {}
        if self._trains_policy:
            metrics["gradient_norm"] = self._policy.step(scheduled(self.learning_rate))
        if self._value_model is not None:
            assert isinstance(self._config, ActorCriticConfig)
            learning_rate = scheduled(self._config.value_learning_rate)
            metrics["value_gradient_norm"] = self._value_model.step(learning_rate)
        return metrics

    def _token_rewards(self, batch: Batch, kl_BT: Tensor | None) -> Tensor:
        """[B, T]: the score at the last token, less the KL penalty of every token if it is in the reward."""
        scores_B = batch.scores_B
        if isinstance(self._config, GRPOConfig) and self._config.overlong_buffer_tokens:
            scores_B = scores_B - overlong_penalty(
                batch.mask_BT.sum(1),
                max_tokens=self._max_new_tokens,
                buffer_tokens=self._config.overlong_buffer_tokens,
            )
        if kl_BT is None:
            no_kl_BT = torch.zeros_like(batch.behavior_logprobs_BT)
            return kl_penalized_rewards(scores_B, no_kl_BT, batch.mask_BT, kl_coef=0.0)
        return kl_penalized_rewards(scores_B, kl_BT, batch.mask_BT, kl_coef=self._kl_controller.kl_coef)

    def _advantages(
        self, batch: Batch, rewards_BT: Tensor, micro_batches: Sequence[MicroBatch]
    ) -> tuple[dict[str, Tensor], float]:
        """How much better than expected each token was, and what all were multiplied by."""
        scale = 1.0
        match self._config:
            case ActorCriticConfig(gamma=gamma, gae_lambda=lam, whiten_advantages=whiten):
                values_BT = forward_all(batch, micro_batches, self._values)
                advantages_BT, returns_BT = gae(rewards_BT, values_BT, batch.mask_BT, gamma=gamma, lam=lam)
                if whiten:
                    advantages_BT, scale = whitened(advantages_BT, batch.mask_BT)
                return {"advantages": advantages_BT, "returns": returns_BT, "old_values": values_BT}, scale
            case ReinforceConfig():
                rewards_to_go_BT, _ = gae(
                    rewards_BT, torch.zeros_like(rewards_BT), batch.mask_BT, gamma=1.0, lam=1.0
                )
                advantages_BT, scale = whitened(rewards_to_go_BT, batch.mask_BT)
                return {"advantages": advantages_BT}, scale
            case RLOOConfig(scale_advantages=scaled):
                advantages_B = leave_one_out_advantages(rewards_BT.sum(1), batch.group_ids_B)
                if scaled:
                    spread = moments(advantages_B)[1] + STD_EPSILON
                    advantages_B, scale = advantages_B / spread, 1 / spread
            case GRPOConfig(scale_by_std=scale_by_std):
                advantages_B = group_advantages(
                    rewards_BT.sum(1), batch.group_ids_B, scale_by_std=scale_by_std
                )
        return {"advantages": advantages_B[:, None].expand_as(rewards_BT)}, scale

    def _policy_terms(
        self, micro_batch: MicroBatch, targets: Targets, counts: Mapping[str, float]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """([N], [], metrics): policy log-probs, and what the loss has beside the surrogate: KL and entropy."""
        config = self._config
        if not (config.entropy_coef or self._kl.is_exact):
            policy_N, logits_NV = self._policy_logprobs(micro_batch), None
        else:
            logits_NV = self._logits(micro_batch)
            policy_N = logprobs_of(logits_NV, micro_batch.row.to(self._policy.device).target_ids_N).cpu()
        terms, metrics = torch.zeros(()), {}
        if self._kl.in_loss:
            kl_N = self._kl.in_row(policy_N, logits_NV, micro_batch)
            if self._kl.is_exact:
                exact = (kl_N.detach() * micro_batch.mask_N).sum()
                metrics["kl_exact_nats_per_token"] = exact / counts["tokens"]
            metrics["kl_loss"] = self._mean(kl_N.detach(), micro_batch, counts["normalizer"])
            weighted_N = kl_N * micro_batch.select(targets["kl_weights"])
            terms = terms + self._kl_controller.kl_coef * self._mean(
                weighted_N, micro_batch, counts["normalizer"]
            )
        if config.entropy_coef:
            assert logits_NV is not None
            bonus = self._mean(entropy(logits_NV).cpu(), micro_batch, counts["normalizer"])
            terms, metrics["entropy"] = terms - config.entropy_coef * bonus, bonus.detach()
        return policy_N, terms, metrics

    def _mean(self, values_N: Tensor, micro_batch: MicroBatch, normalizer: float) -> Tensor:
        """This row's share of a mean over the minibatch."""
        return mean_over_tokens(
            values_N,
            micro_batch.mask_N,
            aggregation=self._config.aggregation,
            normalizer=normalizer,
            sequence_ids=micro_batch.sequence_ids_N,
        )

    def _accumulate_value(
        self, micro_batch: MicroBatch, targets: Targets, num_tokens: float, *, last: bool
    ) -> Metrics:
        assert self._value_model is not None
        assert isinstance(self._config, PPOConfig | A2CConfig)
        loss, metrics = value_loss(
            self._values(micro_batch),
            micro_batch.select(targets["old_values"]),
            micro_batch.select(targets["returns"]),
            micro_batch.mask_N,
            clip=self._config.value_clip_range,
            normalizer=num_tokens,
        )
        self._value_model.backward(loss, last=last)
        return metrics

    def _policy_logprobs(self, micro_batch: MicroBatch) -> Tensor:
        return self._policy(micro_batch.row.to(self._policy.device), self._decoding).cpu()

    def _logits(self, micro_batch: MicroBatch) -> Tensor:
        """[N, V], where the policy lives."""
        return self._policy(micro_batch.row.to(self._policy.device), self._decoding, logits=True)

    def _values(self, micro_batch: MicroBatch) -> Tensor:
        assert self._value_model is not None
        return self._value_model(micro_batch.row.to(self._value_model.device)).cpu()
