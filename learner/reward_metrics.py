"""How well scores agree with people: on the order of two texts, on how sure to be of it, with single raters.

Dimension key: S texts, P pairs.
"""

import torch
from torch import Tensor

CALIBRATION_BINS = 10
"""Of the predicted probability that the first text is preferred."""
SAMPLED_PAIRS = 50_000
"""Random pairs that calibration and agreement with raters are measured on."""


def pairwise_accuracy(scores_S: Tensor, ratings_S: Tensor, margin: float) -> float:
    """Share of the pairs, whose ratings differ by `margin` or more, that the scores order like the ratings."""
    difference_SS = ratings_S[:, None] - ratings_S[None]
    counted_SS = (difference_SS >= margin) & (difference_SS > 0)
    right_SS = (scores_S[:, None] > scores_S[None]) & counted_SS
    return float(right_SS.sum() / counted_SS.sum())


def rater_agreement(scores_S: Tensor, raters_S: list[tuple[int, ...]]) -> dict[str, float]:
    """How the scores fare against one rater of each text, drawn at random; ties are left out.

    `rater_agreement` is the share of pairs in the raters' order, `rater_ceiling` what the order of the mean
    ratings reaches there, and `calibration_error` the mean distance, weighted by bin, between
    sigmoid(score gap), the probability that Bradley-Terry gives the first text, and how often it was preferred.
    """
    generator = torch.Generator().manual_seed(0)
    first_P, second_P = torch.randint(len(scores_S), (2, SAMPLED_PAIRS), generator=generator)
    single = torch.tensor(
        [ratings[int(torch.randint(len(ratings), (), generator=generator))] for ratings in raters_S]
    )
    differ_P = single[first_P] != single[second_P]
    first_P, second_P = first_P[differ_P], second_P[differ_P]
    preferred_P = single[first_P] > single[second_P]
    means_S = torch.tensor([sum(ratings) / len(ratings) for ratings in raters_S])
    gap_P, mean_gap_P = scores_S[first_P] - scores_S[second_P], means_S[first_P] - means_S[second_P]
    return {
        "rater_agreement": float(((gap_P > 0) == preferred_P).float().mean()),
        "rater_ceiling": float(((mean_gap_P > 0) == preferred_P).float().mean()),
        "calibration_error": calibration_error(gap_P.sigmoid(), preferred_P),
    }


def calibration_error(probability_P: Tensor, preferred_P: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3) in bins of equal width."""
    bin_P = (probability_P * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    error = 0.0
    for index in range(CALIBRATION_BINS):
        inside_P = bin_P == index
        if inside_P.any():
            gap = probability_P[inside_P].mean() - preferred_P[inside_P].float().mean()
            error += float(inside_P.float().mean() * gap.abs())
    return error
