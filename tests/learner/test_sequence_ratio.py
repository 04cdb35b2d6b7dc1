"""One ratio a sequence (GSPO), and means over tokens, against literals, finite differences and packing.

Dimension key: B sequences, T token positions.
"""

import math

import pytest
import torch
from torch import Tensor

from learner.losses import Aggregation, mean_over_tokens, ppo_policy_loss, sequence_ratio_logprobs

NAN = float("nan")
LN2 = math.log(2)


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def bools(*rows: list[int]) -> Tensor:
    return torch.tensor(rows).bool()


def by_hand() -> tuple[Tensor, Tensor, Tensor]:
    """Token ratios 2, 8 | 1/2, (masked): their geometric means are 4 and 1/2."""
    behavior_BT = tensor([-3, -5], [-2, NAN])
    policy_BT = tensor([-3 + LN2, -5 + 3 * LN2], [-2 - LN2, NAN])
    return policy_BT, behavior_BT, bools([1, 1], [1, 0])


def random_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Policy and behavior log-probs [5, 6], and a mask with gaps and no empty row."""
    generator = torch.Generator().manual_seed(0)
    policy_BT, behavior_BT = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64) - 2
    mask_BT = torch.rand(5, 6, generator=generator) < 0.6
    mask_BT[:, 0] |= ~mask_BT.any(1)
    return policy_BT, behavior_BT, mask_BT


# --- one ratio a sequence -------------------------------------------------------------------------------


def test_sequence_ratio_by_hand() -> None:
    # Behavior plus the log of the sequence's ratio: ln 4 = 2 ln 2 for both tokens of row 0, -ln 2 in row 1
    logprobs_BT = sequence_ratio_logprobs(*by_hand())
    torch.testing.assert_close(logprobs_BT, tensor([-3 + 2 * LN2, -5 + 2 * LN2], [-2 - LN2, 0]))


def test_sequence_ratio_gradient_by_hand() -> None:
    # Weights 1, 10 | 100: each token of row 0 moves the log of its ratio by 1/2, so gets (1 + 10) / 2.
    policy_BT, behavior_BT, mask_BT = by_hand()
    policy_BT, behavior_BT = policy_BT.requires_grad_(), behavior_BT.requires_grad_()
    logprobs_BT = sequence_ratio_logprobs(policy_BT, behavior_BT, mask_BT)
    (logprobs_BT * tensor([1, 10], [100, 1000])).sum().backward()
    assert policy_BT.grad is not None
    torch.testing.assert_close(policy_BT.grad, tensor([5.5, 5.5], [100, 0]), msg="masked NaN must not leak")
    assert behavior_BT.grad is None


def test_gspo_loss_and_gradient_by_hand() -> None:
    # Sequence ratios s = 4 with A = -1, unclipped because it makes the loss larger: 4
    #                 s = 1/2 with A = 3: -min(3/2, 0.8 * 3) = -1.5.   Mean of the two: 1.25
    # d s / d log pi of one of n tokens is s / n: row 0 gets 4 / 2, row 1 -3/2; half of it in the mean.
    policy_BT, behavior_BT, mask_BT = by_hand()
    policy_BT = policy_BT.requires_grad_()
    loss, metrics = ppo_policy_loss(
        sequence_ratio_logprobs(policy_BT, behavior_BT, mask_BT),
        behavior_BT,
        tensor([-1, -1], [3, NAN]),
        mask_BT,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=None,
        aggregation="sequence",
    )
    assert loss.item() == pytest.approx(1.25)
    assert metrics["ratio_max"].item() == pytest.approx(4)
    (grad,) = torch.autograd.grad(loss, policy_BT)
    torch.testing.assert_close(grad, tensor([1, 1], [-0.75, 0]))


def test_sequence_ratio_gradient_by_finite_differences() -> None:
    policy_BT, behavior_BT, mask_BT = random_batch()
    assert torch.autograd.gradcheck(
        lambda policy: sequence_ratio_logprobs(policy, behavior_BT, mask_BT).exp(), policy_BT.requires_grad_()
    )


@pytest.mark.parametrize("keep_masked_out", [True, False])
def test_packed_equals_padded(keep_masked_out: bool) -> None:
    policy_BT, behavior_BT, mask_BT = random_batch()
    keep_BT = torch.ones_like(mask_BT) if keep_masked_out else mask_BT
    ids = (torch.arange(5)[:, None] * 10 - 7).expand_as(mask_BT)[keep_BT]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    policy, behavior, mask = (one[keep_BT][order] for one in (policy_BT, behavior_BT, mask_BT))
    packed = sequence_ratio_logprobs(policy, behavior, mask, sequence_ids=ids[order])
    padded_BT = sequence_ratio_logprobs(policy_BT, behavior_BT, mask_BT)
    torch.testing.assert_close(packed, padded_BT[keep_BT][order])


def test_a_sequence_without_a_masked_token_has_no_ratio() -> None:
    ones = torch.ones(2, 2)
    logprobs_BT = sequence_ratio_logprobs(2 * ones, ones, bools([0, 0], [1, 1]))
    assert logprobs_BT.tolist() == [[0, 0], [2, 2]]


def test_one_token_a_sequence_is_the_token_ratio() -> None:
    policy_BT, behavior_BT, _ = random_batch()
    mask_BT = torch.zeros(5, 6, dtype=torch.bool)
    mask_BT[:, 3] = True
    logprobs_BT = sequence_ratio_logprobs(policy_BT, behavior_BT, mask_BT)
    torch.testing.assert_close(logprobs_BT[:, 3], policy_BT[:, 3])


# --- means over tokens ----------------------------------------------------------------------------------

VALUES_BT = tensor([1, 2, 6], [5, NAN, NAN])
MASK_BT = bools([1, 1, 1], [1, 0, 0])


@pytest.mark.parametrize(
    ("aggregation", "normalizer", "expected"),
    [
        ("token", None, 14 / 4),
        ("token", 8.0, 14 / 8),
        ("sequence", None, (9 / 3 + 5) / 2),
        ("sequence", 4.0, (9 / 3 + 5) / 4),
        ("constant", 20.0, 14 / 20),
        ("token", math.inf, 0),
    ],
)
def test_mean_over_tokens_by_hand(
    aggregation: Aggregation, normalizer: float | None, expected: float
) -> None:
    mean = mean_over_tokens(VALUES_BT, MASK_BT, aggregation=aggregation, normalizer=normalizer)
    assert mean.item() == pytest.approx(expected)
    ids = torch.tensor([4, 4, 4, 2])
    packed = mean_over_tokens(
        VALUES_BT[MASK_BT],
        MASK_BT[MASK_BT],
        aggregation=aggregation,
        normalizer=normalizer,
        sequence_ids=ids,
    )
    assert packed.item() == pytest.approx(expected)


def test_the_gradient_of_a_mean_is_its_weights() -> None:
    values_BT = VALUES_BT.clone().requires_grad_()
    (grad,) = torch.autograd.grad(mean_over_tokens(values_BT, MASK_BT, aggregation="sequence"), values_BT)
    torch.testing.assert_close(grad, tensor([1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0]))


def test_errors_say_what_to_do() -> None:
    ones = torch.ones(4)
    with pytest.raises(ValueError, match="pass sequence_ids"):
        sequence_ratio_logprobs(ones, ones, ones.bool())
    with pytest.raises(ValueError, match=r"behavior_logprobs \[1, 4\]"):
        sequence_ratio_logprobs(ones, ones[None], ones.bool())
    with pytest.raises(ValueError, match=r"mask\.bool"):
        mean_over_tokens(ones, ones, aggregation="token")
    with pytest.raises(ValueError, match="needs a normalizer"):
        mean_over_tokens(ones, ones.bool(), aggregation="constant")
