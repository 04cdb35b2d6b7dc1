"""Heads learned from pairs and rankings against closed forms and a planted order.

Dimension key: S texts, F features, P pairs, R rankings, K texts of a ranking.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from learner import reward_head
from learner.config import RewardModelConfig
from learner.rankings import Rankings, draw, draw_rankings

LOSSES = ("bradley-terry", "margin", "k-wise")
LN3 = math.log(3)


def config(**options: Any) -> RewardModelConfig:
    return RewardModelConfig(**{"num_pairs": 3000, **options})


def fit_head(features_SF: Tensor, ratings_S: Tensor, options: RewardModelConfig) -> Tensor:
    return reward_head.fit_head(features_SF, ratings_S, draw(ratings_S, options), options)


# --- heads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "l2", "expected"),
    [
        ("bradley-terry", 1 / (4 * LN3), LN3),
        ("k-wise", 1 / (4 * LN3), LN3),
        ("margin", 1 / (8 * LN3), 2 * LN3),
    ],
)
def test_a_head_worked_out_by_hand(loss: str, l2: float, expected: float) -> None:
    """Two texts with feature 0 and 1, the second better: every pair is the same.

    The feature's deviation is 1/sqrt 2, so with w the head on the scaled feature the gap is g = sqrt 2 w, and
    the minimum of -log sigmoid(g - m) + l2 w^2 is where sqrt 2 sigmoid(m - g) = 2 l2 w = sqrt 2 l2 g.
    m = 0:    g = ln 3, sigmoid(-ln 3) = 1/4 = l2 ln 3.
    m = ln 3: g = 2 ln 3, sigmoid(-ln 3) = 1/4 = l2 2 ln 3.
    """
    options = config(loss=loss, l2=l2, margin_scale=LN3)
    head_F = fit_head(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0]), options)
    assert head_F.tolist() == pytest.approx([expected], rel=1e-4)
    assert not head_F.requires_grad


def planted(num_texts: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of very different scales, and ratings that are linear in them."""
    generator = torch.Generator().manual_seed(seed)
    features_SF = torch.randn(num_texts, 5, generator=generator) * torch.tensor([1.0, 100, 0.01, 3, 1]) + 7
    return features_SF, features_SF @ torch.tensor([1.0, -0.02, 50, 0, 0.3])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_planted_order_is_found_again(loss: str) -> None:
    head_F = fit_head(*planted(400, seed=0), config(loss=loss))
    features_SF, ratings_S = planted(300, seed=1)
    scores_S = features_SF @ head_F
    above_SS = scores_S[:, None] > scores_S
    better_SS = ratings_S[:, None] > ratings_S
    assert above_SS[better_SS].float().mean() > 0.97


@pytest.mark.parametrize("loss", LOSSES)
def test_units_of_features_do_not_matter(loss: str) -> None:
    features_SF, ratings_S = planted(100, seed=2)
    units_F = torch.tensor([1000.0, 0.001, 1, 5, 0.2])
    head_F = fit_head(features_SF, ratings_S, config(loss=loss, l2=0.1))
    other_F = fit_head(features_SF * units_F, ratings_S, config(loss=loss, l2=0.1))
    torch.testing.assert_close(other_F * units_F, head_F, rtol=1e-2, atol=1e-3)


def test_the_margin_spreads_scores_in_proportion_to_ratings() -> None:
    """Three texts rated 0, 1 and 4, each with a feature of its own, so that their scores are free.

    Bradley-Terry sees order alone, which is symmetric: the same gap twice. Where margins are large beside
    1, the loss is near max(0, margin - gap), and the smallest head without loss has gaps of 1 to 3.
    """
    ratings_S = torch.tensor([0.0, 1.0, 4.0])

    def gaps(**options: Any) -> tuple[float, float]:
        scores = fit_head(torch.eye(3), ratings_S, config(num_pairs=30000, l2=1e-5, **options)).tolist()
        return scores[1] - scores[0], scores[2] - scores[1]

    lower, upper = gaps(loss="bradley-terry")
    assert upper / lower == pytest.approx(1, abs=0.05)
    lower, upper = gaps(loss="margin", margin_scale=100.0)
    assert upper / lower == pytest.approx(3, abs=0.3)


def test_rankings_of_two_are_pairs() -> None:
    features_SF, ratings_S = planted(100, seed=3)
    ratings_S = ratings_S.round()  # some ties, which make neither a pair nor a ranking
    of_two = config(loss="k-wise", l2=0.01).model_copy(update={"ranking_size": 2})
    members_RK, ranks_RK = draw_rankings(ratings_S, of_two)
    assert len(members_RK) < of_two.num_pairs
    pairs_P2 = members_RK.gather(1, ranks_RK.argsort(1))
    assert (ratings_S[pairs_P2[:, 0]] > ratings_S[pairs_P2[:, 1]]).all()
    pairs = Rankings(members_RK=pairs_P2, ranks_RK=torch.arange(2).expand_as(pairs_P2))
    head_F = reward_head.fit_head(features_SF, ratings_S, pairs, config(loss="bradley-terry", l2=0.01))
    torch.testing.assert_close(fit_head(features_SF, ratings_S, of_two), head_F, rtol=1e-3, atol=1e-4)
