"""Scores of completions -> rewards of tokens -> advantages: how much better than expected each choice was.

    scores_B, KL --kl_penalized_rewards--> rewards_BT --gae (with a value model)--> advantages_BT, returns_BT
    scores_B, group ids --group_advantages | leave_one_out_advantages--> advantages_B (no value model)

Computed once a step over the whole batch, before it is cut into micro-batches; never with gradient.
Dimension key: B sequences, T token positions. `mask` is True on the tokens that the policy sampled.
"""

import torch
from torch import Tensor

from learner.aggregation import sequence_index
from learner.shapes import (
    require_coefficient,
    require_floats,
    require_mask,
    require_rank,
    require_same_shape,
)

STD_EPSILON = 1e-6
"""Keeps a group of nearly equal scores finite; where there is something to learn, scores differ by more."""


@torch.no_grad()
def kl_penalized_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, kl_coef: float) -> Tensor:
    """[B, T]: minus `kl_coef` * KL at every sampled token, plus the score at the last one; 0 elsewhere.

    Its sum over a sequence is score - kl_coef * KL (arXiv:1909.08593, eq. 2; RLHF book, Regularization,
    eq. 2), with `kl_BT` the per-token estimate, k1 as a rule (see `learner.kl.kl_estimate`).
    """
    if mask_BT.dim() != 2:
        raise ValueError(f"mask has the shape {list(mask_BT.shape)}; give [B, T], a row for each sequence")
    require_mask(mask_BT, kl=kl_BT)
    require_coefficient("kl_coef", kl_coef)
    require_same_shape(scores=scores_B, mask_rows=mask_BT[:, 0])
    if not mask_BT.any(dim=1).all():
        raise ValueError("a row of the mask is all False: no token to take its score; drop such rollouts")
    rewards_BT = torch.where(mask_BT, -kl_coef * kl_BT, 0.0)
    last_B = mask_BT.shape[1] - 1 - mask_BT.int().flip(1).argmax(dim=1)  # argmax gives the first of equals
    return rewards_BT.scatter_add_(1, last_B[:, None], scores_B[:, None].to(rewards_BT.dtype))


@torch.no_grad()
def overlong_penalty(lengths_B: Tensor, *, max_tokens: int, buffer_tokens: int) -> Tensor:
    """[B] in [0, 1]: what a completion's score loses for coming close to the limit of `max_tokens`.

    0 up to max_tokens - buffer_tokens, from there linear, 1 at the limit: DAPO's soft over-long
    punishment (arXiv:2503.14476, eq. 13) with the limit as L_max.
    """
    if not 1 <= buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens is {buffer_tokens}; set it from 1 to the limit, {max_tokens}")
    return ((lengths_B - (max_tokens - buffer_tokens)) / buffer_tokens).clamp(0, 1)


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float,
    sequence_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns by generalized advantage estimation, shaped like the mask; 0 outside it.

        A_t = delta_t + gamma lam A_{t+1},  delta_t = r_t + gamma V_{t+1} - V_t,  return_t = A_t + V_t

    (arXiv:1506.02438, eq. 16). A value is that before its token is chosen; after the last masked token an episode
    is over and its value 0. Padded [B, T], where a row is a sequence, or packed, where `sequence_ids` (same shape,
    any integers) tells. Each sequence's True positions must be one run, wherever it starts: rewards and values
    outside it (prompt, padding) are never read.
    """
    require_mask(mask, rewards=rewards, values=values)
    require_floats(rewards=rewards, values=values)
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} is {factor}; set it in [0, 1] (RLHF uses gamma 1, lam 0.95)")
    index, num_sequences = sequence_index(mask, sequence_ids)
    if sequence_ids is None:
        return _gae_of_rows(rewards, values, mask, gamma, lam)
    places = _places_of_rows(index.flatten(), num_sequences)
    rewards_BT, values_BT, mask_BT = [
        _as_rows(tensor.flatten(), places, num_sequences) for tensor in (rewards, values, mask)
    ]
    advantages_BT, returns_BT = _gae_of_rows(rewards_BT, values_BT, mask_BT, gamma, lam)
    return advantages_BT[places].view(mask.shape), returns_BT[places].view(mask.shape)


@torch.no_grad()
def group_advantages(scores_B: Tensor, group_ids_B: Tensor, *, scale_by_std: bool) -> Tensor:
    """[B]: score minus the mean of its group, divided by the group's standard deviation if `scale_by_std`.

    True is GRPO (arXiv:2402.03300, sec. 4.1.2), with the sample deviation (n - 1) as TRL and verl take
    it; False is Dr. GRPO (arXiv:2503.20783, sec. 3.2), which does not favour prompts of little spread.
    Groups may have any size above one and lie in any order; equal scores give exactly 0 in float32.
    """
    centered_B, group_of_B, sizes_G = _centered(scores_B, group_ids_B)
    if scale_by_std:
        squares_G = torch.zeros_like(sizes_G).index_add_(0, group_of_B, centered_B.square())
        centered_B = centered_B / ((squares_G / (sizes_G - 1)).sqrt() + STD_EPSILON)[group_of_B]
    return centered_B.to(scores_B.dtype)


@torch.no_grad()
def leave_one_out_advantages(scores_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """[B]: score minus the mean score of the OTHERS of its group: RLOO (arXiv:2402.14740; Kool et al. 2019).

    Computed as n / (n - 1) times the distance to the mean of all n. The baseline does not depend on the
    sample itself, so unlike the group mean it does not shrink the gradient.
    """
    centered_B, group_of_B, sizes_G = _centered(scores_B, group_ids_B)
    return (centered_B * (sizes_G / (sizes_G - 1))[group_of_B]).to(scores_B.dtype)


def _gae_of_rows(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    starts_BT = mask_BT & ~torch.nn.functional.pad(mask_BT, (1, 0))[:, :-1]
    if (starts_BT.sum(1) > 1).any():
        raise ValueError("a row of the mask has a gap; give each run of sampled tokens a row of its own")
    rewards_BT, values_BT = torch.where(mask_BT, rewards_BT, 0.0), torch.where(mask_BT, values_BT, 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    next_advantage_B = next_value_B = values_BT.new_zeros(len(values_BT))
    for t in reversed(range(mask_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = torch.where(mask_BT[:, t], delta_B + gamma * lam * next_advantage_B, 0.0)
        advantages_BT[:, t], next_value_B = next_advantage_B, values_BT[:, t]
    return advantages_BT, advantages_BT + values_BT


def _places_of_rows(index_N: Tensor, num_sequences: int) -> tuple[Tensor, Tensor]:
    """([N], [N]): the row and the column that each packed token has once every sequence is a row."""
    lengths_B = torch.bincount(index_N, minlength=num_sequences)
    order_N = index_N.argsort(stable=True)
    columns_N = torch.empty_like(index_N)
    starts_B = lengths_B.cumsum(0) - lengths_B
    columns_N[order_N] = torch.arange(len(index_N), device=index_N.device) - starts_B[index_N[order_N]]
    return index_N, columns_N


def _as_rows(packed_N: Tensor, places: tuple[Tensor, Tensor], num_rows: int) -> Tensor:
    length = int(places[1].max()) + 1 if len(places[1]) else 0
    return packed_N.new_zeros(num_rows, length).index_put_(places, packed_N)


def _centered(scores_B: Tensor, group_ids_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores minus their group's mean [B], each one's group [B] and the groups' sizes [G], in float64:
    there a mean of equal float32 scores is exact."""
    require_rank(1, scores=scores_B)
    require_floats(scores=scores_B)
    require_same_shape(scores=scores_B, group_ids=group_ids_B)
    ids_G, group_of_B, counts_G = torch.unique(group_ids_B, return_inverse=True, return_counts=True)
    if (counts_G < 2).any():
        alone = ids_G[counts_G < 2].tolist()
        raise ValueError(
            f"groups {alone[:5]} have one sample, which leaves nothing to compare with; sample at least 2 a "
            "prompt (group_size), and drop a group as a whole when its rollouts fail"
        )
    sizes_G = counts_G.double()
    means_G = torch.zeros_like(sizes_G).index_add_(0, group_of_B, scores_B.double()) / sizes_G
    return scores_B.double() - means_G[group_of_B], group_of_B, sizes_G
