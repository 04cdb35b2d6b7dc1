"""Features and ratings of texts -> the linear head of a reward model, by the loss that the recipe names.

    bradley-terry  pairs, the better rated text first
    margin         the same, each pair to be as far apart as its ratings are
    k-wise         rankings of K texts, every pair of them one term

With the features fixed all three are convex in the head, so L-BFGS solves them to the end in seconds.

Dimension key: S texts, F features, P pairs, R rankings, K texts of a ranking.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from learner.config import RewardModelConfig
from learner.losses import bradley_terry_loss, k_wise_loss
from learner.rankings import Rankings

MAX_ITERATIONS = 100
"""Of L-BFGS; it converges in fewer."""


def fit_head(features_SF: Tensor, ratings_S: Tensor, rankings: Rankings, config: RewardModelConfig) -> Tensor:
    """[F]: the head under which better rated texts score higher."""
    scale_F = features_SF.std(0)
    scale_F = torch.where(scale_F > 0, scale_F, 1.0)  # a constant feature tells nothing apart
    scaled_SF = features_SF / scale_F
    loss_of = _order_loss(scaled_SF, ratings_S, rankings, config)
    head_F = torch.zeros(features_SF.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([head_F], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(head_F) + config.l2 * head_F.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (head_F / scale_F).detach()


def _order_loss(
    scaled_SF: Tensor, ratings_S: Tensor, rankings: Rankings, config: RewardModelConfig
) -> Callable[[Tensor], Tensor]:
    members_RK, ranks_RK = rankings.members_RK, rankings.ranks_RK
    if config.loss == "k-wise":  # every text is scored once, however many rankings it is in
        return lambda head_F: k_wise_loss((scaled_SF @ head_F)[members_RK], ranks_RK)
    difference_PF = scaled_SF[members_RK[:, 0]] - scaled_SF[members_RK[:, 1]]
    zeros_P, margin_P = torch.zeros(len(difference_PF)), margins(ratings_S, rankings, config)
    return lambda head_F: bradley_terry_loss(difference_PF @ head_F, zeros_P, margin=margin_P)


def margins(ratings_S: Tensor, pairs: Rankings, config: RewardModelConfig) -> Tensor | None:
    """[P]: how far apart each pair's scores should be; None for a loss that asks for none."""
    if config.loss != "margin":
        return None
    chosen_P, rejected_P = pairs.members_RK.unbind(1)
    return config.margin_scale * (ratings_S[chosen_P] - ratings_S[rejected_P])
