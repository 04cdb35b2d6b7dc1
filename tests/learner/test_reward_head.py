"""Heads learned from pairs and rankings against closed forms and a planted order; how pairs are drawn.

Dimension key: S texts, F features, P pairs, R rankings, K texts of a ranking.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import UserError
from learner import reward_head
from learner.config import RewardModelConfig
from learner.reward_head import draw_pairs, draw_rankings, fit_head

LOSSES = ("bradley-terry", "margin", "k-wise")
LN3 = math.log(3)


def config(**options: Any) -> RewardModelConfig:
    return RewardModelConfig(**{"num_pairs": 3000, **options})


# --- pairs ----------------------------------------------------------------------------------------------


def test_pairs_have_the_better_one_first_and_are_far_enough_apart() -> None:
    ratings_S = torch.tensor([0.0, 0.25, 0.5, 3.0])
    chosen_P, rejected_P = draw_pairs(ratings_S, config(min_rating_difference=0.5))
    # 0.25 is too close to both its neighbours; exactly 0.5 apart is enough.
    assert set(zip(chosen_P.tolist(), rejected_P.tolist(), strict=True)) == {(2, 0), (3, 0), (3, 1), (3, 2)}


def test_as_many_pairs_as_wanted_and_the_seed_decides_which() -> None:
    ratings_S = torch.arange(50.0)
    draws = [torch.stack(draw_pairs(ratings_S, config(split_seed=seed))).tolist() for seed in (1, 1, 2)]
    assert len(draws[0][0]) == len(draws[0][1]) == 3000
    assert draws[0] == draws[1] != draws[2]


def test_ratings_too_close_to_make_a_pair_are_refused() -> None:
    with pytest.raises(UserError, match="no two ratings are 0.5 apart; lower min_rating_difference"):
        draw_pairs(torch.tensor([1.0, 1.25, 1.4]), config(min_rating_difference=0.5))


# --- rankings -------------------------------------------------------------------------------------------


def test_ranks_count_the_better_ones_and_ties_share_a_rank() -> None:
    """Texts 0 and 1 are rated 1, text 2 is rated 3, text 3 is rated 2."""
    ratings_S = torch.tensor([1.0, 1.0, 3.0, 2.0])
    members_RK, ranks_RK = draw_rankings(ratings_S, config(num_pairs=60000))
    assert members_RK.shape == ranks_RK.shape
    seen = dict(zip(map(tuple, members_RK.tolist()), ranks_RK.tolist(), strict=True))
    by_hand = {
        (0, 1, 2, 3): [2, 2, 0, 1],
        (2, 3, 1, 0): [0, 1, 2, 2],
        (3, 3, 0, 1): [0, 0, 2, 2],
        (2, 1, 1, 0): [0, 1, 1, 1],
        (3, 0, 2, 2): [2, 3, 0, 0],
        (0, 0, 0, 3): [1, 1, 1, 0],
    }
    assert {members: seen[members] for members in by_hand} == by_hand
    assert (ranks_RK.min(1).values == 0).all()


def test_a_ranking_without_two_ranks_is_left_out() -> None:
    """Two ratings: 1 of 8 rankings of four is all of one. 6 pairs a ranking: 100 are drawn."""
    members_RK, ranks_RK = draw_rankings(torch.tensor([1.0, 2.0]), config(num_pairs=600))
    assert 70 < len(members_RK) < 100
    assert (ranks_RK.max(1).values > 0).all()
    for members, ranks in zip(members_RK.tolist(), ranks_RK.tolist(), strict=True):
        num_best = sum(members)  # text 1 is the better one
        assert ranks == [0 if member else num_best for member in members]


@pytest.mark.parametrize(("size", "num_rankings"), [(4, 100), (5, 60), (9, 16)])
def test_rankings_hold_the_wanted_pairs_together(size: int, num_rankings: int) -> None:
    members_RK, _ = draw_rankings(torch.arange(1e6), config(num_pairs=600, ranking_size=size))
    assert members_RK.shape == (num_rankings, size)  # 600 over 6, 10 and 36 pairs a ranking


def test_at_least_one_ranking_is_drawn() -> None:
    assert len(draw_rankings(torch.arange(1e6), config(num_pairs=1))[0]) == 1


def test_ratings_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(UserError, match="no ranking tells texts apart"):
        draw_rankings(torch.ones(5), config())


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


def test_rankings_of_two_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    features_SF, ratings_S = planted(100, seed=3)
    ratings_S = ratings_S.round()  # some ties, which make neither a pair nor a ranking
    of_two = config(loss="k-wise", l2=0.01).model_copy(update={"ranking_size": 2})
    members_RK, ranks_RK = draw_rankings(ratings_S, of_two)
    assert len(members_RK) < of_two.num_pairs
    pairs = members_RK.gather(1, ranks_RK.argsort(1)).unbind(1)
    assert (ratings_S[pairs[0]] > ratings_S[pairs[1]]).all()
    monkeypatch.setattr(reward_head, "draw_pairs", lambda ratings, options: pairs)
    head_F = fit_head(features_SF, ratings_S, config(loss="bradley-terry", l2=0.01))
    torch.testing.assert_close(fit_head(features_SF, ratings_S, of_two), head_F, rtol=1e-3, atol=1e-4)
