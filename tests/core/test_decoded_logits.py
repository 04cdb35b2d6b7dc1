"""Truncated distributions against literals worked out by hand, and rules that hold for all logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.decoded_logits import decoded_logits
from core.decoding import UNCHANGED, Decoding

PROBS = (0.5, 0.25, 0.15, 0.06, 0.04)
LOGITS_NV = torch.tensor([PROBS], dtype=torch.float64).log()
FIRST = torch.tensor([0])


def kept(decoding: Decoding, sampled: Tensor = FIRST) -> list[int]:
    """Tokens that are not cut off."""
    return [int(token) for token in (decoded_logits(LOGITS_NV, sampled, decoding)[0] > -math.inf).nonzero()]


@pytest.mark.parametrize(
    ("decoding", "tokens"),
    [
        (UNCHANGED, [0, 1, 2, 3, 4]),
        (Decoding(top_k=2), [0, 1]),
        (Decoding(top_k=9), [0, 1, 2, 3, 4]),
        (Decoding(top_p=0.5), [0]),
        (Decoding(top_p=0.51), [0, 1]),
        (Decoding(top_p=0.89), [0, 1, 2]),
        (Decoding(top_p=0.95), [0, 1, 2, 3]),
        (Decoding(min_p=0.3), [0, 1, 2]),  # at least 0.15
        (Decoding(min_p=0.31), [0, 1]),
        (Decoding(top_k=3, top_p=0.56), [0, 1]),  # of the three, 0.5 / 0.9 = 0.556 is not yet 0.56
        (Decoding(top_k=3, top_p=0.55), [0]),
        (Decoding(temperature=2.0, top_p=0.5), [0, 1]),  # square roots: 0.707, 0.5, 0.387, 0.245, 0.2 of 2.04
        (Decoding(temperature=0.5, min_p=0.2), [0, 1]),  # squares: 0.25, 0.0625, 0.0225 against 0.05
    ],
)
def test_what_is_kept(decoding: Decoding, tokens: list[int]) -> None:
    assert kept(decoding) == tokens


def test_what_is_kept_shares_all_probability_in_proportion() -> None:
    probs_V = decoded_logits(LOGITS_NV, FIRST, Decoding(top_k=2)).softmax(1)[0]
    assert probs_V.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])


def test_a_token_that_was_sampled_is_never_impossible() -> None:
    assert kept(Decoding(top_k=1), torch.tensor([4])) == [0, 4]


def test_a_reference_keeps_the_temperature_and_the_whole_vocabulary() -> None:
    reference = Decoding(temperature=0.7, top_k=3, top_p=0.9, min_p=0.1).untruncated
    assert reference == Decoding(temperature=0.7)


def test_the_gradient_flows_through_what_is_kept() -> None:
    """Of log p(0) among the kept 0 and 1, by their logits: (1 - 2/3, -1/3)."""
    logits_NV = LOGITS_NV.clone().requires_grad_()
    decoded_logits(logits_NV, FIRST, Decoding(top_k=2)).log_softmax(1)[0, 0].backward()
    assert logits_NV.grad is not None
    assert logits_NV.grad[0].tolist() == pytest.approx([1 / 3, -1 / 3, 0, 0, 0])


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 12), st.floats(0.05, 1), st.floats(0, 0.9), st.integers(0, 2**31))
def test_positions_do_not_depend_on_each_other(
    num_positions: int, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(num_positions, 12, generator=generator)
    sampled_N = torch.randint(12, (num_positions,), generator=generator)
    decoding = Decoding(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
    together = decoded_logits(logits_NV, sampled_N, decoding)
    last = decoded_logits(logits_NV[-1:], sampled_N[-1:], decoding)
    assert torch.equal(together[-1:], last)
    num_kept_N = (together > -math.inf).sum(1)
    assert (num_kept_N >= 1).all()
    assert (num_kept_N <= top_k + 1).all()
    assert (together.argmax(1) == logits_NV.argmax(1)).all()
