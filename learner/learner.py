"""One rank of the learner: scored rollout groups in, new weights out.

    groups -> batch -> targets -> micro-batches: loss, backward -> ZeRO step

What is minimized is the objective's business (`learner/objective.py`). Every rank gets all groups, trains on its
share, and normalises by what all ranks hold, so that the update does not depend on the number of ranks or on
how rows are packed.

Dimension key: N trained tokens of a packed row.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import torch

from core.decoding import Decoding
from core.messages import Completion, Demonstration, Float32s, RolloutGroup
from core.packing import PackedRow, pack_row, plan_rows
from learner.algorithm_config import AlgorithmConfig, PolicyGradientConfig, SFTConfig
from learner.batch import Batch, MicroBatch, deal_minibatches, make_batch, share_of_rank
from learner.config import KLConfig, LearnerConfig, LiveLearnerConfig
from learner.engine import ZeroEngine
from learner.kl_controllers import make_kl_controller
from learner.lora import adapters_off
from learner.losses import combine_metrics
from learner.objective import Objective, Targets
from learner.policy_gradient import PolicyGradient
from learner.preference import DirectAlignment
from learner.pretraining import Pretraining
from learner.process_group import all_gather, all_reduce_max, all_reduce_sum
from learner.supervised import SupervisedFineTuning
from learner.target_metrics import target_metrics
from learner.update_metrics import metrics_of_step


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
        decoding: Decoding,
        max_new_tokens: int,
        seed: int,
        num_steps: int,
        pretraining: Pretraining | None = None,
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._config = config
        self._algorithm = algorithm
        self.seed = seed
        self._num_steps = num_steps
        self._decoding = decoding
        self.lora = config.lora
        self.policy = policy
        self.value_model = value_model
        self.policy_version = 0
        self.kl_controller = make_kl_controller(kl)
        self._pretraining = pretraining
        self._objective = self._make_objective(algorithm, kl, decoding, max_new_tokens)

    def configure(self, config: LiveLearnerConfig) -> None:
        """Settings that hold from the next step on."""
        self._objective.learning_rate, self._num_steps = config.learning_rate, config.num_steps
        if config.kl_coef is not None:
            self.kl_controller.set_coef(config.kl_coef)
        if self.kl_controller.target is not None:
            self.kl_controller.target = config.kl_target

    def train_step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """One optimizer phase on one step's rollouts; the metrics of the step, the same on every rank.

        Raises `NonFiniteError` before a weight changes if a loss or gradient is not finite.
        """
        epochs = self._deal(len(groups))
        places = share_of_rank(groups, epochs[0], self._rank, self._world_size)
        batch = make_batch([groups[place] for place in places], places)
        everyone = self._micro_batches(batch, range(len(batch)))
        targets = self._objective.targets(batch, everyone, step=self.policy_version)
        updates = self._updates(batch, targets, epochs)
        metrics = metrics_of_step(updates)
        metrics |= {
            **target_metrics(targets, batch.mask_BT),
            "num_updates": float(len(updates)),
            "kl_coef": self.kl_controller.kl_coef,
            "learning_rate": self._scheduled(self._objective.learning_rate),
        }
        if self.kl_controller.target is not None:
            metrics["kl_target"] = self.kl_controller.target
        self._adapt_kl(groups)
        metrics["kl_coef_next"] = self.kl_controller.kl_coef
        self.policy_version += 1
        return metrics

    def model_flops(self, groups: Sequence[RolloutGroup], num_updates: float) -> float:
        """Operations that a step on these groups needs at least, on all ranks together."""
        networks = [self.policy] if self.value_model is None else [self.policy, self.value_model]
        num_epochs = num_updates / self._algorithm.num_minibatches
        num_tokens = sum(group.num_tokens for group in groups) * num_epochs
        return sum(network.flops_per_token for network in networks) * num_tokens

    @torch.no_grad()
    def probe_logprobs(self, row: PackedRow) -> torch.Tensor:
        """[N] float32, nats: a probe sequence under the present weights, at temperature 1. All ranks call."""
        return self.policy(row.to(self.policy.device)).cpu()

    @torch.no_grad()
    def reference_logprobs(self, texts: Sequence[Completion | Demonstration]) -> list[Float32s]:
        """[T] float32 each, nats, 0 where not sampled: under the base, adapters switched off. All ranks call."""
        results = [np.zeros(len(text.token_ids_T), dtype=np.float32) for text in texts]
        sequences = [(text.token_ids_T, text.sampled_T) for text in texts]
        with adapters_off(self.policy):
            for members in plan_rows([len(ids) for ids, _ in sequences], self._config.token_budget):
                row = pack_row([sequences[member] for member in members])
                logprobs_N = self.policy(row.to(self.policy.device), self._decoding.untruncated).cpu().numpy()
                parts = np.split(logprobs_N, np.cumsum(row.trained_lengths)[:-1])
                for member, logprobs in zip(members, parts, strict=True):
                    results[member][texts[member].sampled_T] = logprobs
        return results

    @torch.no_grad()
    def mean_nll(self, texts: Sequence[Demonstration]) -> float:
        """Nats a token: mean negative log-likelihood of texts, for held-out perplexity: at temperature 1 over the
        whole vocabulary, however completions are sampled. All ranks call, and each looks at all texts."""
        total, num_tokens = 0.0, 0
        sequences = [(text.token_ids_T, text.sampled_T) for text in texts]
        for members in plan_rows([len(ids) for ids, _ in sequences], self._config.token_budget):
            row = pack_row([sequences[member] for member in members])
            total -= float(self.policy(row.to(self.policy.device)).double().sum())
            num_tokens += len(row.target_ids_N)
        return total / num_tokens

    def _deal(self, num_groups: int) -> list[list[list[int]]]:
        """The mini-batches of every epoch, as places in the step."""
        count = self._algorithm.num_minibatches
        return [
            deal_minibatches(num_groups, count, seed=(self.seed, self.policy_version, epoch))
            for epoch in range(self._algorithm.num_epochs)
        ]

    def _updates(
        self, batch: Batch, targets: Targets, epochs: Sequence[Sequence[Sequence[int]]]
    ) -> list[dict[str, float]]:
        """The metrics of each optimizer step: epochs of mini-batches, ended early by a policy gone too far. A
        mini-batch without anything to learn from, such as pairs that all score the same, is passed over."""
        members, places = self._objective.members(batch), batch.group_ids_B.tolist()
        updates: list[dict[str, float]] = []
        for minibatch in (set(minibatch) for epoch in epochs for minibatch in epoch):
            part = [member for member in members if places[member] in minibatch]
            counts = self._counts(batch, part)
            if not any(counts.values()):
                continue
            updates.append(self._update(batch, targets, part, counts))
            if self._is_too_far(updates[-1]):
                break
        return updates

    def _counts(self, batch: Batch, members: Sequence[int]) -> dict[str, float]:
        """Of all ranks together."""
        return {
            name: float(all_reduce_sum(torch.tensor(count, dtype=torch.float64)))
            for name, count in self._objective.counts(batch, members).items()
        }

    def _update(
        self, batch: Batch, targets: Targets, members: Sequence[int], counts: Mapping[str, float]
    ) -> dict[str, float]:
        """One optimizer step on one minibatch, its gradient accumulated over packed rows."""
        pretraining = self._pretraining.accumulate(self.policy_version) if self._pretraining else {}
        micro_batches = self._micro_batches(batch, members)
        parts = [
            self._objective.accumulate(micro_batch, targets, counts, last=index == len(micro_batches) - 1)
            for index, micro_batch in enumerate(micro_batches)
        ]
        metrics = {name: float(value) for name, value in combine_metrics(all_gather(parts)).items()}
        return metrics | pretraining | self._objective.update(self._scheduled)

    def _micro_batches(self, batch: Batch, members: Sequence[int]) -> list[MicroBatch]:
        """Packed rows of some rollouts: as many on every rank, because ZeRO's collectives must pair up."""
        plan = batch.plan(members, self._config.token_budget, keep_groups=self._objective.keeps_groups)
        micro_batches = [
            MicroBatch(batch=batch, members=row, row=pack_row([batch.sequences[member] for member in row]))
            for row in plan
        ]
        shortest = pack_row([min(batch.sequences, key=lambda sequence: len(sequence[0]))])
        idle = MicroBatch(batch=batch, members=[], row=shortest)
        return micro_batches + [idle] * (max(1, all_reduce_max(len(plan))) - len(plan))

    def _is_too_far(self, update: dict[str, float]) -> bool:
        limit = getattr(self._algorithm, "max_approx_kl", None)
        return limit is not None and update["approx_kl"] > limit * update["loss_weight"]

    def _scheduled(self, peak: float) -> float:
        """The learning rate of the present step."""
        step, warmup = self.policy_version, self._config.warmup_steps
        warmed_up = peak * min(1.0, (step + 1) / (warmup + 1))
        left = min(1.0, max(0, self._num_steps - step) / max(1, self._num_steps - warmup))
        match self._config.lr_schedule:
            case "constant":
                return warmed_up
            case "linear":
                return warmed_up * left
            case "cosine":
                return warmed_up * (1 - math.cos(math.pi * left)) / 2

    def _adapt_kl(self, groups: Sequence[RolloutGroup]) -> None:
        kl_nats = [rollout.kl_nats for group in groups for rollout in group.rollouts]
        self.kl_controller.update(fmean(kl_nats), num_sequences=len(kl_nats))

    def _make_objective(
        self, algorithm: AlgorithmConfig, kl: KLConfig, decoding: Decoding, max_new_tokens: int
    ) -> Objective:
        learning_rate = self._config.learning_rate
        if isinstance(algorithm, PolicyGradientConfig):
            return PolicyGradient(
                algorithm,
                kl,
                self.kl_controller,
                policy=self.policy,
                value_model=self.value_model,
                learning_rate=learning_rate,
                decoding=decoding,
                max_new_tokens=max_new_tokens,
            )
        if isinstance(algorithm, SFTConfig):
            return SupervisedFineTuning(algorithm, policy=self.policy, learning_rate=learning_rate)
        return DirectAlignment(algorithm, policy=self.policy, learning_rate=learning_rate, decoding=decoding)
