"""Figures of what a step aims at, against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learner.target_metrics import moments, target_metrics, whitened

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


def test_whitened_by_hand() -> None:
    # Trained values 1, 3, 5, 7: mean 4, population variance (9 + 1 + 1 + 9) / 4 = 5
    values_BT = torch.tensor([[1.0, 3.0, math.nan], [5.0, 99.0, 7.0]])
    whitened_BT, scale = whitened(values_BT, MASK_BT)
    expected = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5)
    torch.testing.assert_close(whitened_BT[MASK_BT].float(), expected, rtol=1e-5, atol=0)
    assert scale == pytest.approx(1 / math.sqrt(5), rel=1e-5)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-100, 100))
def test_whitened_values_have_mean_0_and_variance_1(seed: int, scale: float, shift: float) -> None:
    values_BT = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) * scale + shift
    selected = whitened(values_BT.double(), MASK_BT)[0][MASK_BT]
    assert abs(float(selected.mean())) < 1e-9
    assert float(selected.var(correction=0)) == pytest.approx(1, rel=1e-3)


def test_a_spread_far_from_0_is_not_lost_in_rounding() -> None:
    """1000 +- 1/64 are exact in float32; their squares, a million +- 31, have no digits left for 1/4096."""
    mean, std = moments(torch.tensor([1000 - 1 / 64, 1000 + 1 / 64]))
    assert mean == 1000
    assert std == pytest.approx(1 / 64, rel=1e-5)
