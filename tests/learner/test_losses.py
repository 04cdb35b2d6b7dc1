"""RL losses against literals, finite differences, and the rules that packing and accumulation rest on.

Dimension key: B sequences, T token positions, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner import kl as kl_module
from learner.losses import (
    Aggregation,
    Metrics,
    combine_metrics,
    entropy,
    grpo_loss,
    importance_weights,
    ppo_policy_loss,
    value_loss,
)

AGGREGATIONS: tuple[Aggregation, ...] = ("token", "sequence", "constant")
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}
NAN = float("nan")


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def bools(*rows: list[int]) -> Tensor:
    return torch.tensor(rows).bool()


def random_batch(seed: int, num_rows: int = 5, length: int = 6, spread: float = 0.5) -> dict[str, Tensor]:
    """Log-probs [B, T] that differ enough for every clip to bite, and a mask with gaps and no empty row."""
    generator = torch.Generator().manual_seed(seed)
    policy, behavior, reference, advantages = torch.randn(
        4, num_rows, length, generator=generator, dtype=torch.float64
    )
    mask = torch.rand(num_rows, length, generator=generator) < 0.6
    mask[:, 0] |= ~mask.any(1)
    return {
        "policy": spread * policy - 2,
        "behavior": spread * behavior - 2,
        "reference": spread * reference - 2,
        "advantages": advantages,
        "mask": mask,
    }


def normalizer_of(mask: Tensor, aggregation: Aggregation) -> float:
    """Global counts: tokens, sequences, sequences * longest completion allowed (here 10)."""
    return {"token": float(mask.sum()), "sequence": float(len(mask)), "constant": 10.0 * len(mask)}[
        aggregation
    ]


def ppo(batch: dict[str, Tensor], **options: Any) -> tuple[Tensor, Metrics]:
    options = {**CLIP, "aggregation": "token", **options}
    return ppo_policy_loss(batch["policy"], batch["behavior"], batch["advantages"], batch["mask"], **options)


def grpo(batch: dict[str, Tensor], **options: Any) -> tuple[Tensor, Metrics]:
    options = {**CLIP, "kl_coef": 0.1, **options}
    return grpo_loss(
        batch["policy"], batch["behavior"], batch["reference"], batch["advantages"], batch["mask"], **options
    )


def gradient(loss: Callable[..., tuple[Tensor, Metrics]], batch: dict[str, Tensor], **options: Any) -> Tensor:
    policy = batch["policy"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss({**batch, "policy": policy}, **options)[0], policy)
    return grad


# --- PPO ------------------------------------------------------------------------------------------------


def by_hand() -> dict[str, Tensor]:
    """Ratios 2, 1/2, 1, 4 | 1/2, (masked), with advantages 1, -1, 2, -1 | 3, (masked)."""
    ratios = tensor([2, 0.5, 1, 4], [0.5, NAN, NAN, NAN])
    return {
        "policy": ratios.log() - 1,
        "behavior": torch.full((2, 4), -1.0, dtype=torch.float64),
        "advantages": tensor([1, -1, 2, -1], [3, NAN, NAN, NAN]),
        "mask": bools([1, 1, 1, 1], [1, 0, 0, 0]),
    }


def test_ppo_by_hand() -> None:
    # clip 0.2 low, 0.3 high, dual 3. Losses -min(rA, clip(r)A):
    #   r 2,   A 1:  -min(2, 1.3) = -1.3        clipped above
    #   r 1/2, A -1: -min(-0.5, -0.8) = 0.8     clipped below
    #   r 1,   A 2:  -2
    #   r 4,   A -1: -min(-4, -1.3) = 4, at most 3 * 1 by the dual clip: 3
    #   r 1/2, A 3:  -min(1.5, 2.4) = -1.5
    # token: (-1.3 + 0.8 - 2 + 3 - 1.5) / 5 = -0.2;  sequence: (0.5 / 4 - 1.5) / 2 = -0.6875
    # constant 10: -1 / 10 = -0.1
    expected = {"token": -0.2, "sequence": -0.6875, "constant": -0.1}
    for aggregation in AGGREGATIONS:
        normalizer = 10.0 if aggregation == "constant" else None
        loss, metrics = ppo(by_hand(), aggregation=aggregation, normalizer=normalizer)
        assert loss.item() == pytest.approx(expected[aggregation])
        assert metrics["policy_loss"] == loss
    loss, _ = ppo(by_hand(), dual_clip=None)
    assert loss.item() == pytest.approx(0.0)  # 4 in place of 3


def test_ppo_metrics_by_hand() -> None:
    _, metrics = ppo(by_hand())
    # approx_kl is the mean of r - 1 - ln r, whose sum is
    # (1 - ln 2) + (-1/2 + ln 2) + 0 + (3 - 2 ln 2) + (-1/2 + ln 2) = 3 - ln 2
    expected = {
        "clip_fraction_low": 1 / 5,
        "clip_fraction_high": 1 / 5,
        "clip_fraction_dual": 1 / 5,
        "approx_kl": (3 - math.log(2)) / 5,
        "ratio_max": 4.0,
        "loss_weight": 1.0,
        "policy_loss": -0.2,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)
    assert not any(value.requires_grad for value in metrics.values())


def test_ppo_gradient_by_hand() -> None:
    # d loss / d policy log-prob = -r A / 5 where no bound bites: only r 1, A 2 (-2/5) and r 1/2, A 3 (-1.5/5)
    torch.testing.assert_close(
        gradient(ppo, by_hand()), tensor([0, 0, -0.4, 0], [-0.3, 0, 0, 0]), msg="masked NaN must not leak"
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_on_policy_the_loss_is_minus_the_mean_advantage_and_its_gradient_the_policy_gradient(
    aggregation: Aggregation,
) -> None:
    batch = random_batch(0)
    batch["behavior"] = batch["policy"]
    normalizer = normalizer_of(batch["mask"], aggregation)
    loss, metrics = ppo(batch, aggregation=aggregation, normalizer=normalizer)
    weights = batch["mask"] / normalizer
    if aggregation == "sequence":
        weights = weights / batch["mask"].sum(1, keepdim=True)
    assert loss.item() == pytest.approx(-(weights * batch["advantages"]).sum().item())
    # d/d log pi of -sum w A log pi
    torch.testing.assert_close(
        gradient(ppo, batch, aggregation=aggregation, normalizer=normalizer), -weights * batch["advantages"]
    )
    assert metrics["approx_kl"] == metrics["clip_fraction_low"] == metrics["clip_fraction_high"] == 0
    assert metrics["ratio_max"] == 1


def test_a_packed_row_without_tokens_adds_nothing() -> None:
    """As a rank may have that others have more rows than."""
    nothing = torch.zeros(0, requires_grad=True)
    loss, metrics = ppo_policy_loss(
        nothing,
        nothing,
        nothing,
        nothing == 0,
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
        aggregation="token",
        normalizer=7.0,
    )
    assert loss.item() == metrics["ratio_max"].item() == metrics["loss_weight"].item() == 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_by_finite_differences(aggregation: Aggregation) -> None:
    batch = random_batch(1)
    normalizer = normalizer_of(batch["mask"], aggregation)

    def value(loss: Callable[..., tuple[Tensor, Metrics]]) -> Callable[[Tensor], Tensor]:
        return lambda policy: loss(
            {**batch, "policy": policy}, aggregation=aggregation, normalizer=normalizer
        )[0]

    policy = batch["policy"].clone().requires_grad_()
    assert torch.autograd.gradcheck(value(ppo), policy)
    assert torch.autograd.gradcheck(value(grpo), policy)
    # And one by hand: central difference at one token.
    step = torch.zeros_like(batch["policy"])
    step[2, 0] = 1e-5
    slope = (value(grpo)(batch["policy"] + step) - value(grpo)(batch["policy"] - step)) / 2e-5
    exact = gradient(grpo, batch, aggregation=aggregation, normalizer=normalizer)[2, 0]
    assert exact != 0
    torch.testing.assert_close(slope, exact, rtol=1e-7, atol=1e-9)


def test_gradient_flows_through_the_policy_alone() -> None:
    batch = random_batch(2)
    others = {name: batch[name].clone().requires_grad_() for name in ("behavior", "reference", "advantages")}
    loss, _ = grpo({**batch, **others, "policy": batch["policy"].requires_grad_()})
    loss.backward()
    assert batch["policy"].grad is not None
    assert all(tensor.grad is None for tensor in others.values())


def test_a_ratio_that_overflows_gives_no_nan() -> None:
    batch = {
        "policy": torch.tensor([[0.0, 0.0]]),
        "behavior": torch.tensor([[-200.0, -200.0]]),
        "advantages": torch.tensor([[1.0, -1.0]]),
        "mask": bools([1, 1]),
    }
    for dual_clip in (None, 3.0):
        loss, metrics = ppo(batch, dual_clip=dual_clip)
        assert all(value.isfinite() for value in (loss, *metrics.values()))
        assert (gradient(ppo, batch, dual_clip=dual_clip) == 0).all()
    assert loss.item() == pytest.approx((-1.3 + 3) / 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9), st.floats(0.05, 5), st.floats(1.1, 5))
def test_clips_only_ever_make_the_policy_look_worse_and_bound_what_they_should(
    seed: int, low: float, high: float, dual: float
) -> None:
    """The surrogate is a pessimistic bound; with the dual clip a bad token costs at most c |A|."""
    batch = random_batch(seed, spread=1.5)
    mask, advantages = batch["mask"], batch["advantages"]
    surrogate = -((batch["policy"] - batch["behavior"]).exp() * advantages)[mask].mean()
    clipped, _ = ppo(batch, clip_low=low, clip_high=high, dual_clip=None)
    assert clipped >= surrogate - 1e-12
    bounded, _ = ppo(batch, clip_low=low, clip_high=high, dual_clip=dual)
    assert bounded <= clipped + 1e-12
    assert (
        bounded <= (torch.where(advantages < 0, -max(dual, 1 - low) * advantages, 0.0)[mask]).mean() + 1e-12
    )


# --- accumulation and packing ---------------------------------------------------------------------------


def pack(batch: dict[str, Tensor], keep_masked_out: bool) -> tuple[dict[str, Tensor], Tensor]:
    """[T] packed tensors and their sequence ids, shuffled, with or without the tokens outside the mask."""
    keep = torch.ones_like(batch["mask"]) if keep_masked_out else batch["mask"]
    ids = (torch.arange(len(keep))[:, None] * 10 - 7).expand_as(keep)[keep]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    return {name: tensor[keep][order] for name, tensor in batch.items()}, ids[order]


def assert_same_metrics(one: Metrics, other: Metrics) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=name)


@pytest.mark.parametrize("loss", [ppo, grpo])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 4))
def test_micro_batches_add_up_to_the_batch(loss: Any, aggregation: Aggregation, seed: int, cut: int) -> None:
    batch = random_batch(seed)
    options = {"aggregation": aggregation, "normalizer": normalizer_of(batch["mask"], aggregation)}
    whole, whole_metrics = loss(batch, **options)
    parts = [
        {name: tensor[piece] for name, tensor in batch.items()} for piece in (slice(cut), slice(cut, None))
    ]
    results = [loss(part, **options) for part in parts]
    torch.testing.assert_close(results[0][0] + results[1][0], whole)
    torch.testing.assert_close(
        torch.cat([gradient(loss, part, **options) for part in parts]), gradient(loss, batch, **options)
    )
    assert_same_metrics(combine_metrics([metrics for _, metrics in results]), whole_metrics)
    if aggregation != "constant":  # a whole batch counts for itself
        torch.testing.assert_close(loss(batch, aggregation=aggregation)[0], whole)


@pytest.mark.parametrize("loss", [ppo, grpo])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("keep_masked_out", [True, False])
def test_packed_equals_padded(loss: Any, aggregation: Aggregation, keep_masked_out: bool) -> None:
    batch = random_batch(3)
    options = {"aggregation": aggregation, "normalizer": normalizer_of(batch["mask"], aggregation)}
    packed, ids = pack(batch, keep_masked_out)
    padded_loss, padded_metrics = loss(batch, **options)
    packed_loss, packed_metrics = loss(packed, **options, sequence_ids=ids)
    torch.testing.assert_close(packed_loss, padded_loss)
    assert_same_metrics(packed_metrics, padded_metrics)
    assert loss(packed, **{**options, "normalizer": 7.0}, sequence_ids=ids)[0] != packed_loss
    again, _ = pack({"grad": gradient(loss, batch, **options), "mask": batch["mask"]}, keep_masked_out)
    torch.testing.assert_close(gradient(loss, packed, **options, sequence_ids=ids), again["grad"])


def test_rows_that_hold_several_sequences_are_told_apart_by_ids() -> None:
    batch = random_batch(4, num_rows=4)
    ids = torch.arange(4)[:, None].expand(4, 6)
    two_rows = {name: tensor.reshape(2, 12) for name, tensor in batch.items()}
    torch.testing.assert_close(
        ppo(two_rows, aggregation="sequence", sequence_ids=ids.reshape(2, 12))[0],
        ppo(batch, aggregation="sequence")[0],
    )


def test_a_sequence_without_a_masked_token_does_not_count() -> None:
    batch = random_batch(5)
    batch["mask"][2] = False
    others = {name: tensor[[0, 1, 3, 4]] for name, tensor in batch.items()}
    for aggregation in AGGREGATIONS[:2]:
        torch.testing.assert_close(
            ppo(batch, aggregation=aggregation)[0], ppo(others, aggregation=aggregation)[0]
        )


def test_empty_micro_batches_count_nothing() -> None:
    batch = random_batch(5)
    empty = {**batch, "mask": torch.zeros_like(batch["mask"])}
    for part, normalizer in ((empty, 30.0), (batch, math.inf)):
        loss, metrics = ppo(part, normalizer=normalizer)
        assert loss == metrics["loss_weight"] == 0
        assert (gradient(ppo, part, normalizer=normalizer) == 0).all()
    whole = ppo(batch)[1]
    assert_same_metrics(combine_metrics([whole, ppo(empty, normalizer=30.0)[1]]), whole)


# --- GRPO -----------------------------------------------------------------------------------------------


def test_grpo_by_hand() -> None:
    # Ratios 1, so the surrogate is -A. Row 0: A 2, 2; row 1: A -1. Mean of means: -(2 - 1) / 2 = -0.5
    # Policy / reference: 2, 1 | 1/2; k3 = reference/policy - 1 + ln(policy/reference):
    #   1/2 - 1 + ln 2 = 0.193147;  0;  2 - 1 - ln 2 = 0.306853
    # mean of means: (0.193147 / 2 + 0.306853) / 2 = 0.201713.  Loss -0.5 + 0.1 * 0.201713 = -0.479829
    batch = {
        "policy": tensor([-1, -1], [-1, NAN]),
        "behavior": tensor([-1, -1], [-1, -1]),
        "reference": tensor([-1 - math.log(2), -1], [-1 + math.log(2), NAN]),
        "advantages": tensor([2, 2], [-1, 0]),
        "mask": bools([1, 1], [1, 0]),
    }
    loss, metrics = grpo(batch)
    assert loss.item() == pytest.approx(-0.479829, abs=1e-6)
    assert metrics["policy_loss"].item() == pytest.approx(-0.5)
    assert metrics["kl_loss"].item() == pytest.approx(0.201713, abs=1e-6)
    # d loss / d log pi = (-A + 0.1 (1 - reference/policy)) * weight; weights 1/4, 1/4 | 1/2
    #   (-2 + 0.1 * 0.5) / 4 = -0.4875;  -2 / 4 = -0.5;  (1 + 0.1 * (1 - 2)) / 2 = 0.45
    torch.testing.assert_close(gradient(grpo, batch), tensor([-0.4875, -0.5], [0.45, 0]))


def test_grpo_without_kl_is_ppo() -> None:
    batch = random_batch(6)
    torch.testing.assert_close(grpo(batch, kl_coef=0.0)[0], ppo(batch, aggregation="sequence")[0])


# --- importance weights ---------------------------------------------------------------------------------


def test_importance_weights_by_hand() -> None:
    # Ratios 2, 3, (masked) | 1/2, 1/4, 1. cap 2.5. Sequences: 6, capped; 1/8
    policy = tensor([2, 3, NAN], [0.5, 0.25, 1]).log()
    behavior, mask = torch.zeros_like(policy), bools([1, 1, 0], [1, 1, 1])
    per_token = importance_weights(policy, behavior, mask, level="token", cap=2.5)
    torch.testing.assert_close(per_token, tensor([2, 2.5, 0], [0.5, 0.25, 1]))
    expected = tensor([2.5, 2.5, 0], [0.125, 0.125, 0.125])
    per_sequence = importance_weights(policy, behavior, mask, level="sequence", cap=2.5)
    torch.testing.assert_close(per_sequence, expected)
    ids = torch.tensor([3, 3, 3, 1, 1, 1])
    packed = importance_weights(
        policy.flatten(), behavior.flatten(), mask.flatten(), level="sequence", cap=2.5, sequence_ids=ids
    )
    torch.testing.assert_close(packed, expected.flatten())


def test_importance_weights_carry_no_gradient_and_never_overflow() -> None:
    policy = torch.zeros(1, 2, requires_grad=True)
    weights = importance_weights(policy, torch.full((1, 2), -500.0), bools([1, 1]), level="sequence", cap=2.0)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, torch.full((1, 2), 2.0))


def test_sequence_weights_correct_the_sampler_and_token_weights_do_not() -> None:
    """All two-token sequences over two tokens: the weighted mean of any f under the sampler is policy's."""
    generator = torch.Generator().manual_seed(0)
    first, then = torch.randn(2, 2, generator=generator), torch.randn(2, 2, 2, generator=generator)
    first, then = (
        first.double().log_softmax(-1),
        then.double().log_softmax(-1),
    )  # [model, token], [model, token, token]
    pairs = [(a, b) for a in range(2) for b in range(2)]
    logprobs = torch.stack(
        [torch.stack([first[:, a], then[:, a, b]], -1) for a, b in pairs], 1
    )  # [model, 4, 2]
    rewards_B = torch.tensor([3.0, -1.0, 5.0, 2.0], dtype=torch.float64)
    policy_B, sampler_B = logprobs.sum(-1).exp()
    mask = torch.ones(4, 2, dtype=torch.bool)
    means = {}
    for level in ("token", "sequence"):
        weights_BT = importance_weights(logprobs[0], logprobs[1], mask, level=level, cap=1e9)
        means[level] = (sampler_B * weights_BT[:, 1] * rewards_B).sum().item()
    exact = (policy_B * rewards_B).sum().item()
    assert means["sequence"] == pytest.approx(exact)
    assert means["token"] != pytest.approx(exact, rel=1e-3)


# --- value loss -----------------------------------------------------------------------------------------


def test_value_loss_by_hand() -> None:
    # V 2, 5, 1, 5; old V 1, 1, 1, 1; returns 3, 4, 1, 1; clip 0.5.  Errors squared: 1, 1, 0, 16
    # Clipped V: 1.5, 1.5, 1, 1.5; errors squared: 2.25, 6.25, 0, 0.25.  Larger: 2.25, 6.25, 0, 16
    # Half the mean: 24.5 / 8.  Without clip half the mean of 1, 1, 0, 16 = 18 / 8.  Two of four clipped.
    # Var(returns) = mean(9, 16, 1, 1) - (9/4)^2 = 27/4 - 81/16 = 27/16
    # Var(returns - V) = Var(1, -1, 0, -4) = 18/4 - 1 = 7/2;  explained 1 - (7/2) / (27/16) = 1 - 56/27
    arguments = (
        tensor([2, 5, 1, 5, NAN]),
        tensor([1, 1, 1, 1, 0]),
        tensor([3, 4, 1, 1, NAN]),
        bools([1, 1, 1, 1, 0]),
    )
    loss, metrics = value_loss(*arguments, clip=0.5)
    assert loss.item() == pytest.approx(24.5 / 8)
    assert metrics["value_loss"] == loss
    assert metrics["value_clip_fraction"] == 1 / 2
    assert metrics["explained_variance"].item() == pytest.approx(1 - 56 / 27)
    loss, metrics = value_loss(*arguments, clip=None)
    assert loss.item() == pytest.approx(18 / 8)
    assert metrics["value_clip_fraction"] == 0


def test_value_gradient_by_hand() -> None:
    # Without clip the gradient of half the mean square is (V - return) / 3. With clip 0.5 the clipped error
    # is the larger for the first two, where V is out of reach of old V: no gradient.
    values = tensor([2, 5, 2, NAN]).requires_grad_()
    others = tensor([1, 1, 1.8, 0]), tensor([3, 4, 1, NAN]), bools([1, 1, 1, 0])
    for clip, expected in ((None, tensor([-1, 1, 1, 0])), (0.5, tensor([0, 0, 1, 0]))):
        (grad,) = torch.autograd.grad(value_loss(values, *others, clip=clip)[0], values)
        torch.testing.assert_close(grad, expected / 3)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_gradient_by_finite_differences(clip: float | None) -> None:
    batch = random_batch(7)
    values = batch["policy"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: value_loss(v, batch["behavior"], batch["advantages"], batch["mask"], clip=clip)[0], values
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([None, 0.3]))
def test_value_micro_batches_add_up_to_the_batch(seed: int, cut: int, clip: float | None) -> None:
    """Also the explained variance, which no sum of explained variances would give."""
    batch = random_batch(seed)
    arguments = batch["policy"], batch["behavior"], batch["advantages"], batch["mask"]
    loss, metrics = value_loss(*arguments, clip=clip)
    normalizer = float(batch["mask"].sum())
    parts = [
        value_loss(*(argument[piece] for argument in arguments), clip=clip, normalizer=normalizer)
        for piece in (slice(cut), slice(cut, None))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss)
    assert_same_metrics(combine_metrics([part for _, part in parts]), metrics)
    selected = batch["advantages"][batch["mask"]], (batch["advantages"] - batch["policy"])[batch["mask"]]
    variance, left = (one.var(correction=0) for one in selected)
    torch.testing.assert_close(metrics["explained_variance"], 1 - left / variance)


def test_explained_variance_of_constant_returns_is_not_a_number() -> None:
    constant = torch.full((2, 3), 0.1)
    mask = torch.ones(2, 3, dtype=torch.bool)
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert value_loss(values, values, constant, mask, clip=None)[1]["explained_variance"].isnan()
    assert value_loss(constant, constant, values, mask, clip=None)[1]["explained_variance"].item() == (
        pytest.approx(0, abs=1e-6)
    )


# --- entropy --------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    # Uniform over 4: ln 4. (1/2, 1/4, 1/4): 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2. Certain: 0, -inf or not
    logits = torch.stack(
        [
            torch.zeros(4),
            torch.tensor([0.5, 0.25, 0.25, 0.0]).log(),
            torch.tensor([0.0, -math.inf, -math.inf, -math.inf]),
            torch.tensor([1000.0, 0, 0, 0]),
        ]
    )
    expected = torch.tensor([math.log(4), 1.5 * math.log(2), 0, 0])
    torch.testing.assert_close(entropy(logits), expected, atol=1e-6, rtol=0)
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(entropy(logits).sum(), logits)
    assert grad.isfinite().all()
    # Uniform is the maximum: no slope.  (1/2, 1/4, 1/4): -p0 (ln p0 + H) = -1/2 (-1 + 1.5) ln 2 = -0.25 ln 2
    torch.testing.assert_close(grad[0], torch.zeros(4), atol=1e-6, rtol=0)
    assert grad[1, 0].item() == pytest.approx(-0.25 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("chunk_elements", [1, 15, 1 << 22])
def test_entropy_gradient_by_finite_differences(chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_module, "CHUNK_ELEMENTS", chunk_elements)
    logits = torch.randn(
        2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    assert torch.autograd.gradcheck(entropy, logits)
    p = logits.softmax(-1)
    torch.testing.assert_close(entropy(logits), -(p * p.log()).sum(-1))


# --- both precisions, errors ----------------------------------------------------------------------------


def test_float32_agrees_with_float64() -> None:
    batch = random_batch(8)
    single = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    loss, metrics = grpo(single)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), grpo(batch)[0], rtol=1e-5, atol=1e-6)
    assert all(value.is_floating_point() for value in metrics.values())


def test_errors_say_what_to_do() -> None:
    batch = random_batch(9)
    packed, _ = pack(batch, keep_masked_out=False)
    flat = {**batch, "advantages": batch["advantages"][:, 0]}
    wrong: list[tuple[dict[str, Tensor], dict[str, Any], str]] = [
        (batch, {"clip_low": 0.0}, r"clip range is \(0.0, 0.3\)"),
        (batch, {"dual_clip": 1.0}, "set it above 1"),
        (batch, {"aggregation": "mean"}, "choose one of token, sequence, constant"),
        (batch, {"aggregation": "constant"}, "needs a normalizer"),
        (batch, {"normalizer": 0.0}, "global count"),
        (packed, {"aggregation": "sequence"}, "pass sequence_ids"),
        (flat, {}, r"advantages \[5\].*expand_as"),
        ({**batch, "mask": batch["mask"].long()}, {}, r"mask\.bool"),
        ({**batch, "mask": torch.zeros_like(batch["mask"])}, {}, "selects no token"),
    ]
    for bad_batch, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            ppo(bad_batch, **options)
    values = batch["policy"], batch["policy"], batch["policy"], batch["mask"]
    with pytest.raises(ValueError, match="clip is 0"):
        value_loss(*values, clip=0)
    with pytest.raises(ValueError, match="choose token or sequence"):
        importance_weights(values[0], values[1], values[3], level="group", cap=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cap is 0"):
        importance_weights(values[0], values[1], values[3], level="token", cap=0)
    with pytest.raises(ValueError, match="at least one"):
        combine_metrics([])
