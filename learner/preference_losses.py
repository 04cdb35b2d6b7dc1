"""Scores or log-probs of compared completions -> the scalars to minimize: reward models, DPO and relatives.

Log-probs here are of whole completions: summed over their tokens, in nats. Every loss is a mean over pairs
(`k_wise_loss`: over prompts) and takes its micro-batch's share of it: give `normalizer`, the count over all
micro-batches and ranks of the step, and the shares sum to the loss of the whole batch. Without it, this call
is the whole batch.

Dimension key: B pairs or prompts, K completions ranked for a prompt.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.shapes import (
    require_coefficient,
    require_floats,
    require_positive,
    require_rank,
    require_same_shape,
)

DPOVariant = Literal["sigmoid", "ipo", "conservative"]


def bradley_terry_loss(
    chosen_B: Tensor,
    rejected_B: Tensor,
    *,
    margin: Tensor | float | None = None,
    normalizer: float | None = None,
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), from scores of a reward model (arXiv:2203.02155, eq. 1).

    A margin [B], or one for all, says how much better the chosen one was rated (Llama 2, arXiv:2307.09288,
    eq. 2). Adding one constant to all scores changes nothing.
    """
    require_same_shape(chosen=chosen_B, rejected=rejected_B)
    require_floats(chosen=chosen_B, rejected=rejected_B)
    if isinstance(margin, Tensor):
        require_same_shape(chosen=chosen_B, margin=margin)
        if (margin < 0).any():
            raise ValueError(
                f"margin of pair {int((margin < 0).nonzero()[0])} is below 0: its chosen one is rated lower"
            )
    elif margin is not None:
        require_coefficient("margin", margin)
    gap_B = chosen_B - rejected_B
    return _mean(-logsigmoid(gap_B if margin is None else gap_B - margin), normalizer)


def k_wise_loss(scores_BK: Tensor, ranks_BK: Tensor, *, normalizer: float | None = None) -> Tensor:
    """Bradley-Terry over all pairs of a ranking: mean over the pairs of a prompt, then over prompts.

    (arXiv:2203.02155, eq. 1, with 1 / (K choose 2).) Rank 0 is best; equal ranks are ties and make no
    pair, since they say nothing about order; a negative rank marks an empty place, for prompts with fewer
    than K completions. Every prompt weighs the same, whatever its number of pairs.
    """
    require_rank(2, scores=scores_BK)
    require_same_shape(scores=scores_BK, ranks=ranks_BK)
    if ranks_BK.is_floating_point() or ranks_BK.dtype == torch.bool:
        raise ValueError(f"ranks are {ranks_BK.dtype}; pass whole numbers, 0 for the best (ranks.long())")
    present_BK = ranks_BK >= 0
    better_BKK = ranks_BK[:, :, None] < ranks_BK[:, None, :]  # first beats second
    better_BKK = better_BKK & present_BK[:, :, None] & present_BK[:, None, :]
    num_pairs_B = better_BKK.sum(dim=(1, 2))
    if (num_pairs_B == 0).any():
        row = int((num_pairs_B == 0).nonzero()[0])
        raise ValueError(
            f"prompt {row} of the batch has no two different ranks; drop prompts that are all ties"
        )
    scores_BK = torch.where(present_BK, scores_BK, 0.0)
    gap_BKK = scores_BK[:, :, None] - scores_BK[:, None, :]
    losses_BKK = torch.where(better_BKK, -logsigmoid(gap_BKK), 0.0)
    return _mean(losses_BKK.sum(dim=(1, 2)) / num_pairs_B, normalizer)


def dpo_loss(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    *,
    beta: float,
    variant: DPOVariant = "sigmoid",
    label_smoothing: float = 0.0,
    weights_B: Tensor | None = None,
    normalizer: float | None = None,
) -> Tensor:
    """Makes the policy its own reward model, with reward beta * log(policy / reference).

    With h the log-ratio of the chosen completion minus that of the rejected one:

        sigmoid       -log sigmoid(beta h)                                    (DPO, arXiv:2305.18290, eq. 7)
        ipo           (h - 1 / (2 beta))^2, which has an optimum at finite h  (IPO, arXiv:2310.12036, eq. 17)
        conservative  -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),  (cDPO, Mitchell 2023)
                      for labels wrong with probability e = `label_smoothing`

    `weights_B` says how much each pair counts, such as by its reward gap; left out, all count 1.
    """
    gap_B = _log_ratio_gap(policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B)
    require_positive("beta", beta)
    if not (0 < label_smoothing < 0.5 if variant == "conservative" else label_smoothing == 0):
        raise ValueError(
            f"label_smoothing is {label_smoothing} with variant {variant!r}; set it in (0, 0.5) with "
            "'conservative', and leave it at 0 otherwise"
        )
    match variant:
        case "sigmoid":
            losses_B = -logsigmoid(beta * gap_B)
        case "ipo":
            losses_B = (gap_B - 1 / (2 * beta)).square()
        case "conservative":
            right_B, wrong_B = -logsigmoid(beta * gap_B), -logsigmoid(-beta * gap_B)
            losses_B = (1 - label_smoothing) * right_B + label_smoothing * wrong_B
        case _:
            raise ValueError(f"no DPO variant {variant!r}; choose one of sigmoid, ipo, conservative")
    if weights_B is not None:
        require_same_shape(policy_chosen=policy_chosen_B, weights=weights_B)
        if (weights_B < 0).any():
            raise ValueError(
                f"the weight of pair {int((weights_B < 0).nonzero()[0])} is below 0: exchange its completions"
            )
        losses_B = losses_B * weights_B.detach()
    return _mean(losses_B, normalizer)


def rpo_loss(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    reward_gap_B: Tensor,
    *,
    beta: float,
    eta: float,
    normalizer: float | None = None,
) -> Tensor:
    """DPO that knows how much better: the gap of implicit rewards is to match eta * the reward model's gap.

        KL( Bernoulli(sigmoid(eta * reward gap)) || Bernoulli(sigmoid(beta h)) )

    with h as in `dpo_loss` and `reward_gap_B` chosen minus rejected (Nemotron-4, arXiv:2406.11704,
    sec. 3.3.2). It is 0, not merely small, where the gaps match.
    """
    gap_B = _log_ratio_gap(policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B)
    require_same_shape(policy_chosen=policy_chosen_B, reward_gap=reward_gap_B)
    require_positive("beta", beta)
    require_positive("eta", eta)
    implicit_B, target_B = beta * gap_B, eta * reward_gap_B.detach()
    win_B = target_B.sigmoid() * (logsigmoid(target_B) - logsigmoid(implicit_B))
    lose_B = (-target_B).sigmoid() * (logsigmoid(-target_B) - logsigmoid(-implicit_B))
    return _mean(win_B + lose_B, normalizer)


def rebel_loss(
    policy_first_B: Tensor,
    policy_second_B: Tensor,
    behavior_first_B: Tensor,
    behavior_second_B: Tensor,
    reward_gap_B: Tensor,
    *,
    eta: float,
    normalizer: float | None = None,
) -> Tensor:
    """Regression of relative rewards: (h / eta - reward gap)^2 (REBEL, arXiv:2404.16767, algorithm 1).

    h is the log-ratio policy / behavior of the first completion minus that of the second: the behavior
    policy is the policy of the last iteration, which sampled both. `reward_gap_B` is first minus second,
    of either sign.
    """
    gap_B = _log_ratio_gap(policy_first_B, policy_second_B, behavior_first_B, behavior_second_B)
    require_same_shape(policy_first=policy_first_B, reward_gap=reward_gap_B)
    require_positive("eta", eta)
    return _mean((gap_B / eta - reward_gap_B.detach()).square(), normalizer)


def _log_ratio_gap(
    policy_first_B: Tensor, policy_second_B: Tensor, old_first_B: Tensor, old_second_B: Tensor
) -> Tensor:
    require_same_shape(
        policy_first=policy_first_B,
        policy_second=policy_second_B,
        old_first=old_first_B,
        old_second=old_second_B,
    )
    return (policy_first_B - old_first_B.detach()) - (policy_second_B - old_second_B.detach())


def _mean(values_B: Tensor, normalizer: float | None) -> Tensor:
    if normalizer is None:
        normalizer = values_B.numel()
    if not normalizer > 0:
        raise ValueError(
            f"normalizer is {normalizer}; give the global count of pairs (k_wise_loss: of prompts)"
        )
    return values_B.sum() / normalizer
