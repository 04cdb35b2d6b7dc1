"""Accuracy, calibration and agreement with raters against numbers worked out by hand.

Dimension key: S texts, P pairs.
"""

import math

import pytest
import torch

from learner.reward_metrics import calibration_error, pairwise_accuracy, rater_agreement

LN3 = math.log(3)


def test_pairwise_accuracy_by_hand() -> None:
    # Five pairs of different ratings. 4 (score 3): above a 2 (score 2), below the other (4) and the 1 (5).
    # Both 2s are below the 1. So one of five is right.
    scores_S, ratings_S = torch.tensor([3.0, 2.0, 5.0, 4.0]), torch.tensor([4.0, 2.0, 1.0, 2.0])
    assert pairwise_accuracy(scores_S, ratings_S, 0.0) == pytest.approx(1 / 5)
    # 2 or more apart: the 4 with both 2s and with the 1. 3 apart: with the 1 alone.
    assert pairwise_accuracy(scores_S, ratings_S, 2.0) == pytest.approx(1 / 3)
    assert pairwise_accuracy(scores_S, ratings_S, 3.0) == 0
    assert pairwise_accuracy(ratings_S, ratings_S, 0.0) == 1


def test_equal_scores_order_nothing() -> None:
    assert pairwise_accuracy(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]), 0.0) == 0


def test_calibration_error_by_hand() -> None:
    # Bin 0.2-0.3: predicted 0.25, one of two preferred: 0.25 off.  Bin 0.6-0.7: mean of 0.61 and 0.69 is
    # 0.65, one of two: 0.15 off.  Last bin, 1 included: mean of 0.94 and 1 is 0.97, one of two: 0.47 off.
    probability_P = torch.tensor([0.25, 0.25, 0.61, 0.69, 0.94, 1.0])
    preferred_P = torch.tensor([True, False, False, True, True, False])
    expected = (0.25 + 0.15 + 0.47) / 3
    assert calibration_error(probability_P, preferred_P) == pytest.approx(expected, abs=1e-6)
    # Bins weigh by their pairs: three at 0.05 off by 0.05, one at 0.95 that was wrong.
    probability_P = torch.tensor([0.05, 0.05, 0.05, 0.95])
    expected = 3 / 4 * 0.05 + 1 / 4 * 0.95
    assert calibration_error(probability_P, torch.zeros(4).bool()) == pytest.approx(expected, abs=1e-6)


def test_too_low_and_too_high_do_not_cancel_between_bins() -> None:
    probability_P, preferred_P = torch.tensor([0.15, 0.85]), torch.tensor([True, False])
    assert calibration_error(probability_P, preferred_P) == pytest.approx(0.85, abs=1e-6)


@pytest.mark.parametrize(("gap", "agreement", "calibration"), [(LN3, 1.0, 0.25), (-LN3, 0.0, 0.75)])
def test_one_rater_a_text(gap: float, agreement: float, calibration: float) -> None:
    # Bradley-Terry says 3/4 (or 1/4) where the rater always prefers the first text, and the reverse.
    metrics = rater_agreement(torch.tensor([gap, 0.0]), [(5,), (2,)])
    expected = {"rater_agreement": agreement, "rater_ceiling": 1.0, "calibration_error": calibration}
    assert metrics == pytest.approx(expected, abs=1e-5)


def test_the_ceiling_is_what_the_mean_ratings_reach() -> None:
    """Half the texts A rated 1 by all, half B rated 0, 0, 4: mean 4/3, but 2 of 3 raters like A better.

    Of all pairs 1/2 are A with B, where the raters are for B in 1/3; 1/4 are B with B, of which 4/9 differ
    and the equal means are right by chance, in 1/2; A with A are ties. In eighteenths
    (1/2 * 1/3 + 1/4 * 4/9 * 1/2) / (1/2 + 1/4 * 4/9) = (3 + 1) / (9 + 2) = 4/11.
    Scores that are for A: (1/2 * 2/3 + 1/18) / (11/18) = 7/11. For B: as the means.
    """
    raters_S: list[tuple[int, ...]] = [(1, 1, 1), (0, 0, 4)] * 1000
    is_a_S = torch.tensor([1.0, 0.0]).repeat(1000)
    for_a, for_b = rater_agreement(is_a_S, raters_S), rater_agreement(-is_a_S, raters_S)
    assert for_a["rater_ceiling"] == for_b["rater_ceiling"] == pytest.approx(4 / 11, abs=0.02)
    assert for_a["rater_agreement"] == pytest.approx(7 / 11, abs=0.02)
    assert for_b["rater_agreement"] == for_b["rater_ceiling"]


def test_scores_that_say_nothing_agree_by_chance_and_are_calibrated() -> None:
    metrics = rater_agreement(torch.zeros(100), [(number,) for number in range(100)])
    assert metrics["rater_agreement"] == pytest.approx(0.5, abs=0.01)
    assert metrics["rater_ceiling"] == 1
    assert metrics["calibration_error"] == pytest.approx(0, abs=0.01)


def test_raters_that_know_the_probability_find_no_calibration_error() -> None:
    """A against B, ln 3 apart, where 3 of 4 raters prefer A: the predicted 3/4 is right."""
    raters_S = [(2,), (1, 1, 1, 3)] * 1000
    scores_S = torch.tensor([LN3, 0.0]).repeat(1000)
    metrics = rater_agreement(scores_S, raters_S)
    # B with B, whose raters differ in 2 * 3/4 * 1/4, are even and predicted so.
    assert metrics["calibration_error"] == pytest.approx(0, abs=0.02)
    # 1/2 of pairs A with B, right in 3/4; 1/4 B with B, of which 3/8 differ, right in 1/2
    assert metrics["rater_agreement"] == pytest.approx((3 / 8 + 3 / 64) / (1 / 2 + 3 / 32), abs=0.02)
