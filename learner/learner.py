"""One rank of the learner: scored rollout groups in, new weights out.

    groups -> batch -> KL-penalized token rewards -> advantages -> clipped policy gradient -> ZeRO step
                              (and, with a value model, values -> GAE -> clipped value loss)

Every rank gets all groups, trains on its share, and normalises by what all ranks hold, so that the
update does not depend on the number of ranks or on how rows are packed.

Dimension key: B rollouts of this rank, T completion tokens (padded), N trained tokens of a packed row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from core.messages import RolloutGroup
from core.packing import PackedRow, pack_row
from learner.advantages import STD_EPSILON, gae, kl_penalized_rewards, leave_one_out_advantages
from learner.batch import Batch, make_batch, share_of_rank, split_minibatches
from learner.config import AlgorithmConfig, KLConfig, LearnerConfig, PPOConfig, RLOOConfig
from learner.engine import ZeroEngine, all_gather, all_reduce_max, all_reduce_sum
from learner.kl import AdaptiveKLController, FixedKLController, kl_estimate
from learner.losses import Metrics, combine_metrics, ppo_policy_loss, value_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTargets:
    """What the value loss of a step aims at."""

    returns_BT: torch.Tensor
    old_values_BT: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What the losses of a step aim at."""

    advantages_BT: torch.Tensor
    value: ValueTargets | None
    """None where the algorithm has no value model."""


class Learner:
    """The policy, the value model if the algorithm has one, and the KL coefficient."""

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        config: LearnerConfig,
        algorithm: AlgorithmConfig,
        kl: KLConfig,
        policy: ZeroEngine,
        value_model: ZeroEngine | None,
        temperature: float,
        seed: int,
        num_steps: int,
    ) -> None:
        assert (value_model is not None) == isinstance(algorithm, PPOConfig)
        self._rank = rank
        self._world_size = world_size
        self._config = config
        self._algorithm = algorithm
        self._kl = kl
        self._temperature = temperature
        self._seed = seed
        self._num_steps = num_steps
        self.lora = config.lora
        self.policy = policy
        self.value_model = value_model
        self.policy_version = 0
        self.kl_controller = _kl_controller(kl)

    def train_step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """One optimizer phase on one step's rollouts; the metrics of the step, the same on every rank.

        Raises `NonFiniteError` before a weight changes if a loss or gradient is not finite.
        """
        batch = make_batch(share_of_rank(groups, self._rank, self._world_size))
        targets = self._targets(batch)
        updates: list[dict[str, float]] = []
        for epoch in range(self._algorithm.num_epochs):
            order = split_minibatches(
                batch, self._algorithm.num_minibatches, seed=(self._seed, self.policy_version, epoch)
            )
            updates += [self._update(batch, targets, members) for members in order]
        metrics = {name: fmean(update[name] for update in updates) for name in updates[0]}
        # Later updates move the policy away from the one that sampled; only the first compares like with like.
        metrics |= {name: updates[0][name] for name in ("logprob_gap_max", "logprob_gap_mean")}
        metrics |= {
            "kl_coef": self.kl_controller.kl_coef,
            "learning_rate": self._scheduled(self._config.learning_rate),
        }
        self._adapt_kl(groups)
        self.policy_version += 1
        return metrics

    @torch.no_grad()
    def probe_logprobs(self, row: PackedRow) -> torch.Tensor:
        """[N] float32, nats: a probe sequence under the present weights, at temperature 1. All ranks call."""
        return self.policy(row.to(self.policy.device)).cpu()

    def _targets(self, batch: Batch) -> Targets:
        """Token rewards with the KL penalty, and the advantages that the algorithm makes of them."""
        kl_BT = kl_estimate(
            batch.behavior_logprobs_BT, batch.reference_logprobs_BT, estimator=self._kl.estimator
        )
        rewards_BT = kl_penalized_rewards(
            batch.scores_B, kl_BT, batch.mask_BT, kl_coef=self.kl_controller.kl_coef
        )
        match self._algorithm:
            case PPOConfig(gamma=gamma, gae_lambda=lam, whiten_advantages=whiten):
                values_BT = self._values(batch)
                advantages_BT, returns_BT = gae(rewards_BT, values_BT, batch.mask_BT, gamma=gamma, lam=lam)
                if whiten:
                    mean, std = _moments(advantages_BT[batch.mask_BT])
                    advantages_BT = (advantages_BT - mean) / std
                value = ValueTargets(returns_BT=returns_BT, old_values_BT=values_BT)
                return Targets(advantages_BT=advantages_BT, value=value)
            case RLOOConfig(scale_advantages=scale):
                advantages_B = leave_one_out_advantages(rewards_BT.sum(1), batch.group_ids_B)
                if scale:
                    advantages_B = advantages_B / _moments(advantages_B)[1]
                advantages_BT = advantages_B[:, None].expand_as(rewards_BT)
                return Targets(advantages_BT=advantages_BT, value=None)

    @torch.no_grad()
    def _values(self, batch: Batch) -> torch.Tensor:
        """[B, T]: the value model before its update."""
        assert self.value_model is not None
        values_BT = torch.zeros(batch.mask_BT.shape)
        for members, row in self._rows(batch, range(len(batch))):
            values_N = self.value_model(row.to(self.value_model.device)).cpu()
            batch.scatter(values_N, members, values_BT)
        return values_BT

    def _update(self, batch: Batch, targets: Targets, members: Sequence[int]) -> dict[str, float]:
        """One optimizer step on one minibatch, its gradient accumulated over packed rows."""
        normalizer = float(all_reduce_sum(batch.mask_BT[list(members)].sum()))
        rows = self._rows(batch, members)
        parts = [
            self._accumulate(batch, targets, row_members, row, normalizer, last=index == len(rows) - 1)
            for index, (row_members, row) in enumerate(rows)
        ]
        metrics = {name: float(value) for name, value in combine_metrics(all_gather(parts)).items()}
        if self._trains_policy:
            metrics["gradient_norm"] = self.policy.step(self._scheduled(self._config.learning_rate))
        if isinstance(self._algorithm, PPOConfig) and self.value_model is not None:
            learning_rate = self._scheduled(self._algorithm.value_learning_rate)
            metrics["value_gradient_norm"] = self.value_model.step(learning_rate)
        return metrics

    def _accumulate(
        self,
        batch: Batch,
        targets: Targets,
        members: Sequence[int],
        row: PackedRow,
        normalizer: float,
        *,
        last: bool,
    ) -> Metrics:
        """Forward and backward of one packed row. A row without members keeps the ranks in step."""
        counts_N = torch.full(row.target_ids_N.shape, bool(members))
        pick = batch.select if members else lambda padded_BT, _: torch.zeros(row.target_ids_N.shape)
        behavior_N = pick(batch.behavior_logprobs_BT, members)
        policy_logprobs_N = self.policy(row.to(self.policy.device), self._temperature).cpu()
        loss, metrics = ppo_policy_loss(
            policy_logprobs_N,
            behavior_N,
            pick(targets.advantages_BT, members),
            counts_N,
            clip_low=self._algorithm.clip_range_low,
            clip_high=self._algorithm.clip_range_high,
            dual_clip=None,
            aggregation="token",
            normalizer=normalizer,
        )
        metrics |= _logprob_gap(policy_logprobs_N.detach(), behavior_N, counts_N, normalizer)
        if self._trains_policy:
            self.policy.backward(loss, last=last)
        if isinstance(self._algorithm, PPOConfig) and self.value_model is not None:
            assert targets.value is not None
            loss, value_metrics = value_loss(
                self.value_model(row.to(self.value_model.device)).cpu(),
                pick(targets.value.old_values_BT, members),
                pick(targets.value.returns_BT, members),
                counts_N,
                clip=self._algorithm.value_clip_range,
                normalizer=normalizer,
            )
            self.value_model.backward(loss, last=last)
            metrics |= value_metrics
        return metrics

    def _rows(self, batch: Batch, members: Sequence[int]) -> list[tuple[list[int], PackedRow]]:
        """Packed rows of some rollouts: as many on every rank, because ZeRO's collectives must pair up."""
        rows = batch.rows(members, self._config.token_budget)
        shortest = pack_row([min(batch.sequences, key=lambda sequence: len(sequence[0]))])
        return rows + [([], shortest)] * (all_reduce_max(len(rows)) - len(rows))

    @property
    def _trains_policy(self) -> bool:
        return self.policy_version >= getattr(self._algorithm, "value_warmup_steps", 0)

    def _scheduled(self, peak: float) -> float:
        """The learning rate of the present step."""
        step, warmup = self.policy_version, self._config.warmup_steps
        warmed_up = peak * min(1.0, (step + 1) / (warmup + 1))
        if self._config.lr_schedule == "constant":
            return warmed_up
        return warmed_up * min(1.0, max(0, self._num_steps - step) / max(1, self._num_steps - warmup))

    def _adapt_kl(self, groups: Sequence[RolloutGroup]) -> None:
        kl_nats = [rollout.kl_nats for group in groups for rollout in group.rollouts]
        self.kl_controller.update(fmean(kl_nats), num_sequences=len(kl_nats))


def _kl_controller(kl: KLConfig) -> FixedKLController | AdaptiveKLController:
    if kl.controller == "fixed":
        return FixedKLController(kl.kl_coef)
    assert kl.kl_target is not None, "checked with the recipe"
    return AdaptiveKLController(kl.kl_coef, target=kl.kl_target, horizon=kl.horizon)


def _moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation over all ranks, the latter never 0."""
    sums = all_reduce_sum(
        torch.stack([torch.ones_like(values), values, values**2]).double().flatten(1).sum(1)
    )
    count, total, squares = sums.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5 + STD_EPSILON


def _logprob_gap(
    policy_N: torch.Tensor, behavior_N: torch.Tensor, counts_N: torch.Tensor, normalizer: float
) -> Metrics:
    """How far the engine's log-probs are from the learner's, in nats. Right at a step's first update only."""
    gap_N = (policy_N - behavior_N).abs() * counts_N
    return {"logprob_gap_max": gap_N.max(), "logprob_gap_mean": gap_N.sum() / normalizer}
