"""Preference losses against literals, finite differences, and each other where one is a case of another.

Dimension key: B pairs or prompts, K completions ranked for a prompt.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.preference_losses import bradley_terry_loss, dpo_loss, k_wise_loss, rebel_loss, rpo_loss

LN2 = math.log(2)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logistic_loss(gap: float) -> float:
    return math.log1p(math.exp(-gap))


def random_pairs(count: int, seed: int, num_pairs: int = 6) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, num_pairs, generator=generator, dtype=torch.float64))


def weighted_dpo_loss(first_B: Tensor, second_B: Tensor, *rest: Tensor, **options: Any) -> Tensor:
    *old, weights_B = rest
    return dpo_loss(first_B, second_B, *old, weights_B=weights_B.abs(), **options)


def loss_with_margins(chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor, **options: Any) -> Tensor:
    return bradley_terry_loss(chosen_B, rejected_B, margin=margin_B.abs(), **options)


LOSSES: list[tuple[int, Callable[..., Any], dict[str, Any]]] = [
    (2, bradley_terry_loss, {}),
    (2, bradley_terry_loss, {"margin": 0.7}),
    (3, loss_with_margins, {}),
    (4, dpo_loss, {"beta": 0.3}),
    (4, dpo_loss, {"beta": 0.3, "variant": "ipo"}),
    (4, dpo_loss, {"beta": 0.3, "variant": "conservative", "label_smoothing": 0.1}),
    (5, weighted_dpo_loss, {"beta": 0.3}),
    (5, rpo_loss, {"beta": 0.3, "eta": 0.8}),
    (5, rebel_loss, {"eta": 0.8}),
]


@pytest.mark.parametrize(("count", "loss", "options"), LOSSES)
def test_gradients_by_finite_differences(
    count: int, loss: Callable[..., Any], options: dict[str, Any]
) -> None:
    first, second, *rest = random_pairs(count, seed=0)
    inputs = first.requires_grad_(), second.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, *rest, **options), inputs)


@pytest.mark.parametrize(("count", "loss", "options"), LOSSES)
def test_micro_batches_add_up_to_the_batch(
    count: int, loss: Callable[..., Any], options: dict[str, Any]
) -> None:
    pairs = random_pairs(count, seed=1)
    whole = loss(*pairs, **options)
    parts = [
        loss(*(one[piece] for one in pairs), **options, normalizer=6) for piece in (slice(2), slice(2, None))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize(("count", "loss", "options"), LOSSES)
def test_extreme_scores_stay_finite_in_float32(
    count: int, loss: Callable[..., Any], options: dict[str, Any]
) -> None:
    first = torch.tensor([500.0, -500.0]).requires_grad_()
    value = loss(first, *([torch.zeros(2)] * (count - 1)), **options)
    (grad,) = torch.autograd.grad(value, first)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert value.dtype == torch.float32


# --- reward models --------------------------------------------------------------------------------------


def test_bradley_terry_by_hand() -> None:
    # Gaps 0 and ln 3: -log sigmoid = ln 2 and ln(4/3). Mean (0.693147 + 0.287682) / 2 = 0.490415
    loss = bradley_terry_loss(vector(1.0, math.log(3)), vector(1.0, 0.0))
    assert loss.item() == pytest.approx(0.490415, abs=1e-6)
    # Margins 0 and ln 3 take the second gap to 0: ln 2 for both.
    loss = bradley_terry_loss(vector(1.0, math.log(3)), vector(1.0, 0.0), margin=vector(0.0, math.log(3)))
    assert loss.item() == pytest.approx(LN2)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_bradley_terry_ignores_a_shift_of_all_scores(seed: int, shift: float) -> None:
    chosen_B, rejected_B = random_pairs(2, seed)
    torch.testing.assert_close(
        bradley_terry_loss(chosen_B + shift, rejected_B + shift),
        bradley_terry_loss(chosen_B, rejected_B),
    )


def test_k_wise_by_hand() -> None:
    # Prompt 0: scores 2, 1, 0 with ranks 1, 0, 2: gaps (better - worse) 1-2 = -1, 1-0 = 1, 2-0 = 2
    #   losses 1.313262, 0.313262, 0.126928: mean 0.584484
    # Prompt 1: scores 5, 3 with ranks 0, 1 and an empty place: gap 2: 0.126928.   Mean of prompts 0.355706
    scores_BK = torch.tensor([[2.0, 1.0, 0.0], [5.0, 3.0, math.nan]], dtype=torch.float64).requires_grad_()
    loss = k_wise_loss(scores_BK, torch.tensor([[1, 0, 2], [0, 1, -1]]))
    assert loss.item() == pytest.approx(0.355706, abs=1e-6)
    (grad,) = torch.autograd.grad(loss, scores_BK)
    # Prompt 1: d/d gap of -log sigmoid = -sigmoid(-2) = -0.119203, half of it a prompt's weight
    torch.testing.assert_close(grad[1, :2], vector(-0.059601, 0.059601), atol=1e-6, rtol=0)
    assert grad[1, 2] == 0


def test_k_wise_of_two_is_bradley_terry() -> None:
    chosen_B, rejected_B = random_pairs(2, seed=2)
    ranks_BK = torch.tensor([[0, 1]]).expand(6, 2)
    torch.testing.assert_close(
        k_wise_loss(torch.stack([chosen_B, rejected_B], 1), ranks_BK),
        bradley_terry_loss(chosen_B, rejected_B),
    )


def test_ties_make_no_pair() -> None:
    # Ranks 0, 1, 1: only the pairs of the best with the other two; how these two compare does not matter.
    ranks_BK = torch.tensor([[0, 1, 1]])
    for apart in (0.0, 3.0):
        loss = k_wise_loss(torch.tensor([[4.0, 1 + apart, 1 - apart]]), ranks_BK)
        expected = (logistic_loss(3 - apart) + logistic_loss(3 + apart)) / 2
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.permutations(range(4)), st.floats(-20, 20))
def test_k_wise_ignores_order_and_shift(seed: int, order: list[int], shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores_BK = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    ranks_BK = torch.randint(0, 3, (3, 4), generator=generator)
    ranks_BK[:, 0], ranks_BK[:, 1] = 0, 1
    loss = k_wise_loss(scores_BK, ranks_BK)
    torch.testing.assert_close(k_wise_loss(scores_BK[:, order] + shift, ranks_BK[:, order]), loss)
    half = [k_wise_loss(scores_BK[piece], ranks_BK[piece], normalizer=3) for piece in (slice(1), slice(1, 3))]
    torch.testing.assert_close(half[0] + half[1], loss)


def test_gradient_of_k_wise_by_finite_differences() -> None:
    scores_BK = torch.stack(random_pairs(3, seed=3, num_pairs=4)).requires_grad_()
    ranks_BK = torch.tensor([[0, 1, 2, 3], [2, 0, 0, 1], [1, 0, -1, -1]])
    assert torch.autograd.gradcheck(lambda scores: k_wise_loss(scores, ranks_BK), scores_BK)


# --- direct alignment -----------------------------------------------------------------------------------


def test_dpo_by_hand() -> None:
    # Log-ratios: chosen -1 - (-2) = 1, rejected -4 - (-3) = -1; h = 2, beta 0.5: beta h = 1
    #   sigmoid: -ln sigmoid(1) = 0.313262;  ipo: (2 - 1)^2 = 1
    #   conservative, e = 0.1: 0.9 * 0.313262 + 0.1 * 1.313262 = 0.413262
    pairs = vector(-1), vector(-4), vector(-2), vector(-3)
    loss = dpo_loss(*pairs, beta=0.5)
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert dpo_loss(*pairs, beta=0.5, variant="ipo").item() == pytest.approx(1.0)
    smoothed = dpo_loss(*pairs, beta=0.5, variant="conservative", label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.413262, abs=1e-6)


def test_dpo_gradient_by_hand() -> None:
    # At the start policy = reference: h = 0, d loss / d chosen = -beta sigmoid(0) = -beta / 2
    policy_chosen, policy_rejected = vector(-3).requires_grad_(), vector(-5).requires_grad_()
    loss = dpo_loss(policy_chosen, policy_rejected, vector(-3), vector(-5), beta=0.1)
    assert loss.item() == pytest.approx(LN2)
    chosen, rejected = torch.autograd.grad(loss, (policy_chosen, policy_rejected))
    assert (chosen.item(), rejected.item()) == pytest.approx((-0.05, 0.05))


def test_dpo_weights_by_hand() -> None:
    # h = 2 and 0, beta 0.5: -ln sigmoid(1) = 0.313262 and ln 2. Weights 3 and 1/2, mean over pairs as ever:
    #   (3 * 0.313262 + 0.5 * 0.693147) / 2 = 0.643180.   ipo: (3 * (2 - 1)^2 + 0.5 * (0 - 1)^2) / 2 = 1.75
    pairs = vector(-1, -2), vector(-4, -2), vector(-2, -2), vector(-3, -2)
    weights_B = vector(3, 0.5).requires_grad_()
    loss = dpo_loss(*pairs, beta=0.5, weights_B=weights_B)
    assert loss.item() == pytest.approx(0.643180, abs=1e-6)
    assert not loss.requires_grad  # the weights are given, not learned
    assert dpo_loss(*pairs, beta=0.5, variant="ipo", weights_B=weights_B).item() == pytest.approx(1.75)
    share = dpo_loss(*pairs, beta=0.5, weights_B=weights_B, normalizer=8)
    assert share.item() == pytest.approx(0.643180 / 4, abs=1e-6)


def test_where_each_loss_wants_the_gap() -> None:
    """sigmoid pushes without end; ipo stops at 1 / (2 beta), conservative where beta h = ln((1 - e) / e),
    rpo where beta h = eta * reward gap, rebel where h = eta * reward gap. Found by their slopes' signs."""
    zero = vector(0)

    def slope(loss: Callable[..., Any], gap: float, *rest: Tensor, **options: Any) -> float:
        policy = vector(gap).requires_grad_()
        (grad,) = torch.autograd.grad(loss(policy, zero, zero, zero, *rest, **options), policy)
        return float(grad)

    assert slope(dpo_loss, 20.0, beta=0.5) < 0
    optima: list[tuple[float, Callable[..., Any], tuple[Tensor, ...], dict[str, Any]]] = [
        (1.0, dpo_loss, (), {"beta": 0.5, "variant": "ipo"}),
        (math.log(9) / 0.5, dpo_loss, (), {"beta": 0.5, "variant": "conservative", "label_smoothing": 0.1}),
        (2.0 * 1.5 / 0.5, rpo_loss, (vector(1.5),), {"beta": 0.5, "eta": 2.0}),
        (-2.0 * 1.5, rebel_loss, (vector(-1.5),), {"eta": 2.0}),
    ]
    for gap, loss, rest, options in optima:
        assert slope(loss, gap - 0.01, *rest, **options) < 0 < slope(loss, gap + 0.01, *rest, **options)
        assert slope(loss, gap, *rest, **options) == pytest.approx(0, abs=1e-12)


def test_rpo_by_hand() -> None:
    # beta h = ln 3: sigmoid 3/4. eta * gap = 0: sigmoid 1/2.
    # KL((1/2, 1/2) || (3/4, 1/4)) = 1/2 ln(2/3) + 1/2 ln 2 = 0.143841
    loss = rpo_loss(vector(2 * math.log(3)), vector(0), vector(0), vector(0), vector(0), beta=0.5, eta=2.0)
    assert loss.item() == pytest.approx(0.143841, abs=1e-6)


def test_rpo_with_a_large_reward_gap_is_dpo() -> None:
    first_B, second_B, old_first_B, old_second_B = random_pairs(4, seed=4)
    pairs = first_B, second_B, old_first_B, old_second_B
    sure_B = torch.full((6,), 60.0, dtype=torch.float64)
    torch.testing.assert_close(rpo_loss(*pairs, sure_B, beta=0.3, eta=1.0), dpo_loss(*pairs, beta=0.3))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.05, 3), st.floats(0.05, 3))
def test_rpo_is_a_divergence(seed: int, beta: float, eta: float) -> None:
    chosen_B, rejected_B, reference_chosen_B, reference_rejected_B, reward_gap_B = random_pairs(5, seed)
    pairs = chosen_B, rejected_B, reference_chosen_B, reference_rejected_B
    assert rpo_loss(*pairs, reward_gap_B, beta=beta, eta=eta) >= -1e-12
    gap_B = (chosen_B - reference_chosen_B) - (rejected_B - reference_rejected_B)
    assert rpo_loss(*pairs, beta * gap_B / eta, beta=beta, eta=eta).abs() < 1e-12


def test_rebel_by_hand() -> None:
    # First: policy -1, behavior -2; second: policy -3, behavior -3: h = 1; h / eta = 2. Gap of rewards 5
    loss = rebel_loss(vector(-1), vector(-3), vector(-2), vector(-3), vector(5), eta=0.5)
    assert loss.item() == pytest.approx(9.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_rebel_does_not_care_which_is_first(seed: int) -> None:
    first_B, second_B, old_first_B, old_second_B, gap_B = random_pairs(5, seed)
    loss = rebel_loss(first_B, second_B, old_first_B, old_second_B, gap_B, eta=0.7)
    swapped = rebel_loss(second_B, first_B, old_second_B, old_first_B, -gap_B, eta=0.7)
    torch.testing.assert_close(swapped, loss)


# --- errors ---------------------------------------------------------------------------------------------


def test_errors_say_what_to_do() -> None:
    pair = torch.zeros(2), torch.zeros(2)
    with pytest.raises(ValueError, match=r"chosen \[2\], rejected \[1\]"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"margin \[1\]"):
        bradley_terry_loss(*pair, margin=torch.zeros(1))
    with pytest.raises(ValueError, match="prompt 1 of the batch.*drop"):
        k_wise_loss(torch.zeros(2, 2), torch.tensor([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="beta is 0"):
        dpo_loss(*pair, *pair, beta=0)
    with pytest.raises(ValueError, match="choose one of sigmoid, ipo, conservative"):
        dpo_loss(*pair, *pair, beta=0.1, variant="hinge")  # type: ignore[arg-type]
    for variant, smoothing in (
        ("sigmoid", 0.1),
        ("sigmoid", 0.7),
        ("conservative", 0.0),
        ("conservative", 0.5),
    ):
        with pytest.raises(ValueError, match="label_smoothing"):
            dpo_loss(*pair, *pair, beta=0.1, variant=variant, label_smoothing=smoothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights \[1\]"):
        dpo_loss(*pair, *pair, beta=0.1, weights_B=torch.ones(1))
    with pytest.raises(ValueError, match="eta is -1"):
        rpo_loss(*pair, *pair, torch.zeros(2), beta=0.1, eta=-1)
    with pytest.raises(ValueError, match=r"reward_gap \[\]"):
        rebel_loss(*pair, *pair, torch.tensor(0.0), eta=1)
    with pytest.raises(ValueError, match="global count of pairs"):
        bradley_terry_loss(torch.zeros(0), torch.zeros(0))
