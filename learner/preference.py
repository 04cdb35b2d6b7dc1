"""Direct alignment: the best and the worst completion of a group -> a loss on their log-ratios.

The pairs come from a dataset, or from what the policy has just sampled (then this is online DPO). Log-ratios are
to the reference, and then the policy is taken over the whole vocabulary as the reference is, whatever the sampler
cuts off: else an untrained policy would not have a log-ratio of 0. In REBEL they are to the policy that sampled,
cut off as it was.

Dimension key: B completions of this rank, P pairs of a packed row, S completions of a packed row,
N trained tokens of a packed row.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from core.decoding import Decoding
from learner.aggregation import sequence_sums
from learner.algorithm_config import DPOConfig, PreferenceAlgorithm, REBELConfig, RPOConfig
from learner.batch import Batch, MicroBatch
from learner.engine import ZeroEngine
from learner.losses import Metrics, dpo_loss, rebel_loss, rpo_loss
from learner.objective import Targets


class DirectAlignment:
    """DPO and its relatives. A group whose completions all score the same says nothing and is left out."""

    keeps_groups = True

    def __init__(
        self, config: PreferenceAlgorithm, *, policy: ZeroEngine, learning_rate: float, decoding: Decoding
    ) -> None:
        self._config = config
        self._policy = policy
        self.learning_rate = learning_rate
        self._decoding = decoding if isinstance(config, REBELConfig) else decoding.untruncated

    def targets(self, batch: Batch, micro_batches: Sequence[MicroBatch], *, step: int) -> Targets:
        """The log-probs that the log-ratios are to."""
        if isinstance(self._config, REBELConfig):
            return {"old_logprobs": batch.behavior_logprobs_BT}
        return {"old_logprobs": batch.reference_logprobs_BT}

    def members(self, batch: Batch) -> list[int]:
        """The best and the worst of each group."""
        return [member for group in batch.members_of_groups() for member in _pair_of(group, batch)]

    def counts(self, batch: Batch, members: Sequence[int]) -> dict[str, float]:
        return {"pairs": len(members) / 2}

    def accumulate(
        self, micro_batch: MicroBatch, targets: Targets, counts: Mapping[str, float], *, last: bool
    ) -> Metrics:
        """Forward and backward of one packed row of whole pairs."""
        logprobs_N = self._policy(micro_batch.row.to(self._policy.device), self._decoding).cpu()
        if not micro_batch.members:
            loss, metrics = logprobs_N.sum() * 0.0, dict.fromkeys(PAIR_METRICS, torch.zeros(()))
        else:
            loss, metrics = self._loss(logprobs_N, micro_batch, targets, counts["pairs"])
        self._policy.backward(loss, last=last)
        return metrics

    def update(self, scheduled: Callable[[float], float]) -> dict[str, float]:
        """One optimizer step."""
        return {"gradient_norm": self._policy.step(scheduled(self.learning_rate))}

    def _loss(
        self, logprobs_N: Tensor, micro_batch: MicroBatch, targets: Targets, num_pairs: float
    ) -> tuple[Tensor, Metrics]:
        batch, members = micro_batch.batch, micro_batch.members
        chosen_P, rejected_P = _pairs(batch, members)
        ids_N, num_sequences = micro_batch.sequence_ids_N, len(members)
        policy_S = sequence_sums(logprobs_N, ids_N, num_sequences)
        old_S = sequence_sums(micro_batch.select(targets["old_logprobs"]), ids_N, num_sequences)
        scores_S = batch.scores_B[list(members)]
        gap_P = scores_S[chosen_P] - scores_S[rejected_P]
        pair = (policy_S[chosen_P], policy_S[rejected_P], old_S[chosen_P], old_S[rejected_P])
        match self._config:
            case DPOConfig() as dpo:
                weights_P = gap_P.sigmoid() if dpo.weight_by_reward else None
                loss = dpo_loss(
                    *pair,
                    beta=dpo.beta,
                    variant=dpo.variant,
                    label_smoothing=dpo.label_smoothing,
                    weights_B=weights_P,
                    normalizer=num_pairs,
                )
                lengths_S = batch.mask_BT[list(members)].sum(1)
                nll = (-policy_S / lengths_S)[chosen_P].sum() / num_pairs
                loss = loss + dpo.nll_coef * nll
            case RPOConfig(beta=beta, eta=eta):
                loss = rpo_loss(*pair, gap_P, beta=beta, eta=eta, normalizer=num_pairs)
            case REBELConfig(eta=eta):
                loss = rebel_loss(*pair, gap_P, eta=eta, normalizer=num_pairs)
        log_ratio_S = (policy_S - old_S).detach()
        margin_P = log_ratio_S[chosen_P] - log_ratio_S[rejected_P]
        return loss, {
            "policy_loss": loss.detach(),
            "pair_accuracy_fraction": (margin_P > 0).sum() / num_pairs,
            "pair_margin_nats": margin_P.sum() / num_pairs,
            "pair_score_gap": gap_P.sum() / num_pairs,
        }


PAIR_METRICS = ("policy_loss", "pair_accuracy_fraction", "pair_margin_nats", "pair_score_gap")


def _pair_of(group: Sequence[int], batch: Batch) -> list[int]:
    """The best and the worst of a group, in the batch's order; nothing if they score the same."""
    best = max(group, key=lambda member: float(batch.scores_B[member]))
    worst = min(group, key=lambda member: float(batch.scores_B[member]))
    return sorted((best, worst)) if batch.scores_B[best] > batch.scores_B[worst] else []


def _pairs(batch: Batch, members: Sequence[int]) -> tuple[Tensor, Tensor]:
    """([P], [P]): places in `members` of the chosen and the rejected of each pair; two of a group are a pair."""
    places: dict[int, list[int]] = {}
    for place, member in enumerate(members):
        places.setdefault(int(batch.group_ids_B[member]), []).append(place)
    ordered = [
        sorted(pair, key=lambda place: -float(batch.scores_B[members[place]])) for pair in places.values()
    ]
    return torch.tensor([pair[0] for pair in ordered]), torch.tensor([pair[1] for pair in ordered])
