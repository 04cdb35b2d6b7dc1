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

from core.errors import UserError
from learner.config import RewardModelConfig
from learner.losses import bradley_terry_loss, k_wise_loss

DRAWS_PER_PAIR = 4
"""Random pairs drawn for each one wanted: about half are in the wrong order, some are too close."""
MAX_ITERATIONS = 100
"""Of L-BFGS; it converges in fewer."""


def fit_head(features_SF: Tensor, ratings_S: Tensor, config: RewardModelConfig) -> Tensor:
    """[F]: the head under which better rated texts score higher. Raises `UserError` if the ratings do not
    tell enough texts apart."""
    scale_F = features_SF.std(0)
    scale_F = torch.where(scale_F > 0, scale_F, 1.0)  # a constant feature tells nothing apart
    scaled_SF = features_SF / scale_F
    match config.loss:
        case "bradley-terry" | "margin":
            loss_of = _pair_loss(scaled_SF, ratings_S, config)
        case "k-wise":
            loss_of = _ranking_loss(scaled_SF, ratings_S, config)
    head_F = torch.zeros(features_SF.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([head_F], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(head_F) + config.l2 * head_F.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (head_F / scale_F).detach()


def _pair_loss(scaled_SF: Tensor, ratings_S: Tensor, config: RewardModelConfig) -> Callable[[Tensor], Tensor]:
    chosen_P, rejected_P = draw_pairs(ratings_S, config)
    difference_PF = scaled_SF[chosen_P] - scaled_SF[rejected_P]
    zeros_P = torch.zeros(len(difference_PF))
    margin_P = None
    if config.loss == "margin":
        margin_P = config.margin_scale * (ratings_S[chosen_P] - ratings_S[rejected_P])
    return lambda head_F: bradley_terry_loss(difference_PF @ head_F, zeros_P, margin=margin_P)


def _ranking_loss(
    scaled_SF: Tensor, ratings_S: Tensor, config: RewardModelConfig
) -> Callable[[Tensor], Tensor]:
    """Every text is scored once, however many rankings it is in."""
    members_RK, ranks_RK = draw_rankings(ratings_S, config)
    return lambda head_F: k_wise_loss((scaled_SF @ head_F)[members_RK], ranks_RK)


def draw_pairs(ratings_S: Tensor, config: RewardModelConfig) -> tuple[Tensor, Tensor]:
    """([P], [P]): the better and the worse rated of each pair. Raises `UserError` if there is none."""
    generator = torch.Generator().manual_seed(config.split_seed)
    drawn = (2, DRAWS_PER_PAIR * config.num_pairs)
    first, second = torch.randint(len(ratings_S), drawn, generator=generator)
    far_apart = ratings_S[first] - ratings_S[second] >= config.min_rating_difference
    chosen_P, rejected_P = first[far_apart][: config.num_pairs], second[far_apart][: config.num_pairs]
    if len(chosen_P) == 0:
        raise UserError(
            f"reward_model: no two ratings are {config.min_rating_difference} apart; lower min_rating_difference"
        )
    return chosen_P, rejected_P


def draw_rankings(ratings_S: Tensor, config: RewardModelConfig) -> tuple[Tensor, Tensor]:
    """([R, K], [R, K]): texts, and their ranks with 0 for the best. Together they have `num_pairs` pairs.

    Texts rated the same share a rank and make no pair; a ranking without any two ranks is left out.
    """
    size = config.ranking_size
    num_rankings = max(1, config.num_pairs // (size * (size - 1) // 2))
    generator = torch.Generator().manual_seed(config.split_seed)
    members_RK = torch.randint(len(ratings_S), (num_rankings, size), generator=generator)
    better_RKK = ratings_S[members_RK][:, None, :] > ratings_S[members_RK][:, :, None]
    ranks_RK = better_RKK.sum(2)
    told_apart_R = (ranks_RK > 0).any(1)
    if not told_apart_R.any():
        raise UserError(
            "reward_model: no ranking tells texts apart; raise num_pairs, or give ratings that differ"
        )
    return members_RK[told_apart_R], ranks_RK[told_apart_R]
