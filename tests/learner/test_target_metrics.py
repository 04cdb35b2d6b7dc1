"""Figures of what a step aims at, against values worked out by hand."""

import math

import pytest
import torch

from learner.target_metrics import target_metrics

pytestmark = pytest.mark.usefixtures("process_group")

MASK_BT = torch.tensor([[True, True, False], [True, False, True]])


def test_means_are_over_trained_tokens_alone() -> None:
    targets = {
        "advantages": torch.tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 6.0]]),
        "returns": torch.tensor([[0.0, 0.0, 99.0], [0.0, 99.0, 2.0]]),
        "ratio_logprobs": torch.zeros(2, 3),
    }
    assert target_metrics(targets, MASK_BT) == {
        "advantage_mean": pytest.approx(3.0),
        "advantage_std": pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 4)),
        "return_mean": pytest.approx(0.5),
    }


def test_a_method_without_advantages_has_none_of_these() -> None:
    assert target_metrics({}, MASK_BT) == {}
