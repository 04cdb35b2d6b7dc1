"""KL estimates against exact divergences, exact divergences against literals.

Dimension key: N samples, T token positions, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner import kl as kl_module
from learner.kl import (
    Direction,
    Estimator,
    divergence,
    full_kl,
    kl_estimate,
)

ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3", "abs")
DIRECTIONS: tuple[Direction, ...] = ("reverse", "forward")

finite = st.floats(-5, 5, width=64)


def two_distributions() -> tuple[Tensor, Tensor]:
    """Logits [V] of a policy (0.5, 0.25, 0.25) and a reference (0.25, 0.5, 0.25)."""
    policy = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    reference = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64).log()
    return policy, reference


def random_logits(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


# --- estimators -----------------------------------------------------------------------------------------


def test_estimates_of_one_token_by_hand() -> None:
    # The policy gives the token 0.5, the reference 0.25: x = ln 2 = 0.693147.
    #   k1 = x = 0.693147;  k2 = x^2 / 2 = 0.240227;  k3 = exp(-x) - 1 + x = 0.5 - 1 + 0.693147 = 0.193147
    # The other way round x = -ln 2: k1 = -0.693147; k2 the same; k3 = 2 - 1 - 0.693147 = 0.306853
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    expected = {
        "k1": [0.693147, -0.693147],
        "k2": [0.240227, 0.240227],
        "k3": [0.193147, 0.306853],
        "abs": [0.693147, 0.693147],
    }
    for estimator in ESTIMATORS:
        estimate = kl_estimate(policy, reference, estimator=estimator)
        torch.testing.assert_close(estimate, torch.tensor(expected[estimator]), atol=2e-6, rtol=0)


def exact_mean(logits: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """The estimator's mean over tokens of the policy, with the sampling probabilities held fixed."""
    logprobs = logits.log_softmax(-1)
    estimates = kl_estimate(logprobs, reference.log_softmax(-1), estimator=estimator)
    return (logprobs.detach().exp() * estimates).sum()


@pytest.mark.parametrize("seed", range(5))
def test_values_that_the_docstring_claims(seed: int) -> None:
    policy, reference = random_logits(2, 7, seed=seed)
    reverse = full_kl(policy, reference, direction="reverse")
    for unbiased in ("k1", "k3"):
        torch.testing.assert_close(exact_mean(policy, reference, unbiased), reverse)
    assert exact_mean(policy, reference, "abs") > reverse
    assert not torch.isclose(exact_mean(policy, reference, "k2"), reverse, rtol=1e-3)
    near = policy + 0.01 * reference  # close to the policy k2's bias is of third order
    torch.testing.assert_close(
        exact_mean(policy, near, "k2"), full_kl(policy, near, direction="reverse"), rtol=0.05, atol=0
    )


@pytest.mark.parametrize("seed", range(5))
def test_gradients_that_the_docstring_claims(seed: int) -> None:
    policy, reference = random_logits(2, 7, seed=seed)

    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        logits = policy.clone().requires_grad_()
        grad: Tensor = torch.autograd.grad(function(logits), logits)[0]
        return grad

    means = {name: gradient(lambda z, name=name: exact_mean(z, reference, name)) for name in ESTIMATORS}  # type: ignore[misc]
    torch.testing.assert_close(means["k1"], torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(means["k2"], gradient(lambda z: full_kl(z, reference, direction="reverse")))
    torch.testing.assert_close(means["k3"], gradient(lambda z: full_kl(z, reference, direction="forward")))
    # Twice the total variation is the sum of |p - q|.
    torch.testing.assert_close(
        means["abs"], gradient(lambda z: (z.softmax(-1) - reference.softmax(-1)).abs().sum())
    )


@pytest.mark.parametrize("seed", range(5))
def test_only_k1_in_the_reward_gives_the_gradient_of_reverse_kl(seed: int) -> None:
    policy, reference = random_logits(2, 7, seed=seed)
    logits = policy.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(full_kl(logits, reference, direction="reverse"), logits)
    for estimator in ESTIMATORS:
        logprobs = logits.log_softmax(-1)
        penalty = kl_estimate(logprobs, reference.log_softmax(-1), estimator=estimator).detach()
        (score_function,) = torch.autograd.grad((logprobs.detach().exp() * penalty * logprobs).sum(), logits)
        assert torch.allclose(score_function, reverse) == (estimator == "k1"), estimator


def test_sample_means_agree_with_the_exact_kl_within_their_standard_error() -> None:
    policy, reference = two_distributions()
    # KL(policy || reference) = 0.5 ln 2 + 0.25 ln 0.5 + 0.25 ln 1 = 0.25 ln 2
    exact = 0.25 * math.log(2)
    tokens_N = torch.multinomial(
        policy.exp(), 40_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    spread = {}
    for estimator in ESTIMATORS:
        estimates_N = kl_estimate(policy[tokens_N], reference[tokens_N], estimator=estimator)
        spread[estimator] = estimates_N.std().item()
        error_in_sigmas = (estimates_N.mean().item() - exact) / (spread[estimator] / 200)
        # mean of k2: 0.75 ln^2 2 / 2 = 0.18017, of abs: 0.75 ln 2 = 0.51986; exact: 0.17329
        if estimator in ("k1", "k3"):
            assert abs(error_in_sigmas) < 4
        else:
            assert error_in_sigmas > 5
    assert spread["k3"] < spread["k1"] / 3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=20))
def test_all_but_k1_are_never_negative_and_0_at_equality(pairs: list[tuple[float, float]]) -> None:
    policy, reference = torch.tensor(pairs, dtype=torch.float64).T
    rounding = 1e-15 * (1 + (policy - reference).abs())
    for estimator in ("k2", "k3", "abs"):
        assert (kl_estimate(policy, reference, estimator=estimator) >= -rounding).all()
    for estimator in ESTIMATORS:
        assert (kl_estimate(policy, policy, estimator=estimator) == 0).all()


# --- exact divergences ----------------------------------------------------------------------------------


def test_full_kl_by_hand() -> None:
    # p = (1/2, 1/4, 1/4), q = (3/4, 1/8, 1/8):
    #   KL(p||q) = 1/2 ln(2/3) + 2 * 1/4 ln 2 = -0.202733 + 0.346574 = 0.143841
    #   KL(q||p) = 3/4 ln(3/2) + 2 * 1/8 ln(1/2) = 0.304099 - 0.173287 = 0.130812
    policy, reference = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.75, 0.125, 0.125]).log()
    assert full_kl(policy, reference, direction="reverse").item() == pytest.approx(0.143841, abs=1e-6)
    assert full_kl(policy, reference, direction="forward").item() == pytest.approx(0.130812, abs=1e-6)


def test_gradient_of_full_kl_by_hand() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln(2/3) = 0.143841; x = (ln 2, ln 2/3)
    #   d KL / d policy logit 0 = p0 (x0 - KL) = 0.5 * (0.693147 - 0.143841) = 0.274653
    #   d KL / d reference logit 0 = q0 - p0 = -0.25
    policy = torch.tensor([0.5, 0.5]).log().requires_grad_()
    reference = torch.tensor([0.25, 0.75]).log().requires_grad_()
    full_kl(policy, reference, direction="reverse").backward()
    assert policy.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(policy.grad, torch.tensor([0.274653, -0.274653]), atol=1e-6, rtol=0)
    torch.testing.assert_close(reference.grad, torch.tensor([-0.25, 0.25]))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), finite)
def test_kl_is_not_negative_and_ignores_a_shift_of_the_logits(seed: int, shift: float) -> None:
    policy, reference = random_logits(2, 5, 6, seed=seed)
    for direction in DIRECTIONS:
        kl_T = full_kl(policy, reference, direction=direction)
        assert (kl_T >= 0).all()
        torch.testing.assert_close(full_kl(policy + shift, reference - shift, direction=direction), kl_T)
        assert full_kl(policy, policy, direction=direction).abs().max() < 1e-14


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_of_estimates_by_finite_differences(estimator: Estimator) -> None:
    policy, reference = (t.requires_grad_() for t in random_logits(2, 4, 5, seed=2))

    def estimate(policy: Tensor, reference: Tensor) -> Tensor:
        return kl_estimate(policy, reference, estimator=estimator)

    assert torch.autograd.gradcheck(estimate, (policy, reference))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("chunk_elements", [1, 12, 30, 1 << 22])
def test_gradient_of_full_kl_by_finite_differences(
    direction: Direction, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl_module, "CHUNK_ELEMENTS", chunk_elements)
    policy, reference = (t.requires_grad_() for t in random_logits(2, 2, 3, 5, seed=1))
    assert torch.autograd.gradcheck(lambda p, q: full_kl(p, q, direction=direction), (policy, reference))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 5), max_size=3), st.integers(1, 80), st.booleans(), st.sampled_from(DIRECTIONS)
)
def test_chunks_change_nothing(
    leading: list[int], chunk_elements: int, cut_out: bool, direction: Direction
) -> None:
    """For any number of dimensions, any chunk size, and logits that are a slice of something."""
    policy, reference = random_logits(2, *leading, 7, seed=3)
    if cut_out:
        policy, reference = policy[..., :4], reference[..., ::2]
    p, q = policy.softmax(-1), reference.softmax(-1)
    expected = (p * (p / q).log()).sum(-1) if direction == "reverse" else (q * (q / p).log()).sum(-1)
    whole = kl_module.CHUNK_ELEMENTS
    try:
        kl_module.CHUNK_ELEMENTS = chunk_elements
        policy = policy.detach().requires_grad_()
        kl = full_kl(policy, reference, direction=direction)
        (grad,) = torch.autograd.grad(kl.sum(), policy)
    finally:
        kl_module.CHUNK_ELEMENTS = whole
    torch.testing.assert_close(kl, expected)
    (grad_whole,) = torch.autograd.grad(full_kl(policy, reference, direction=direction).sum(), policy)
    torch.testing.assert_close(grad, grad_whole)


def test_blocks_never_exceed_the_chunk_and_cover_each_position_once() -> None:
    for leading in ([], [7], [3, 5], [2, 3, 4], [4, 1], [0, 3]):
        for num_positions in (1, 2, 5, 6, 100):
            seen = torch.zeros(leading)
            for block in kl_module._blocks(seen.shape, num_positions):
                assert seen[block].numel() <= num_positions
                seen[block] += 1
            assert (seen == 1).all()


def test_the_exact_kl_holds_no_copy_of_the_logits() -> None:
    """Beside the logits, the KL and their gradient, never more than a few chunks are alive."""
    policy, reference = (t.float() for t in random_logits(2, 64, 2048, seed=0))
    policy.requires_grad_()
    whole = kl_module.CHUNK_ELEMENTS
    try:
        kl_module.CHUNK_ELEMENTS = 4 * 2048
        kl_T = full_kl(policy, reference, direction="reverse")
        with _LargestTensor() as largest:
            full_kl(policy, reference, direction="reverse")
            (grad,) = torch.autograd.grad(kl_T, policy, torch.ones_like(kl_T))
    finally:
        kl_module.CHUNK_ELEMENTS = whole
    assert grad.shape == policy.shape
    assert 0 < largest.num_elements <= 4 * 2048


class _LargestTensor(TorchDispatchMode):
    """Watches every operation for the largest result that is not a view. The gradient itself is made
    by an `empty`, which is not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and "empty" not in str(func) and tensor._base is None:
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def test_half_precision_logits_are_computed_in_float32() -> None:
    policy, reference = random_logits(2, 4, 6, seed=2).bfloat16()
    policy.requires_grad_()
    kl_T = full_kl(policy, reference, direction="reverse")
    assert kl_T.dtype == torch.float32
    torch.testing.assert_close(kl_T, full_kl(policy.float(), reference.float(), direction="reverse"))
    (grad,) = torch.autograd.grad(kl_T.sum(), policy)
    assert grad.dtype == torch.bfloat16


def test_forbidden_tokens() -> None:
    """Where the left distribution has a zero the token adds nothing; one on the right alone is infinite."""
    inf = math.inf
    both, one = torch.tensor([0.0, 1.0, -inf]), torch.tensor([0.0, 0.0, 0.0])
    policy = both.clone().requires_grad_()
    kl = full_kl(policy, both + torch.tensor([0.0, 1.0, 0.0]), direction="reverse")
    expected = full_kl(both[:2], both[:2] + torch.tensor([0.0, 1.0]), direction="reverse")
    torch.testing.assert_close(kl, expected)
    (grad,) = torch.autograd.grad(kl, policy)
    assert grad.isfinite().all()
    assert full_kl(both, one, direction="reverse").isfinite()
    assert full_kl(both, one, direction="forward") == inf


def test_divergence_without_a_second_is_minus_the_entropy() -> None:
    # Uniform over four tokens: sum p log p = log(1/4)
    assert divergence(torch.zeros(4), None).item() == pytest.approx(-math.log(4))


def test_errors_say_what_to_do() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="choose one of k1, k2, k3, abs"):
        kl_estimate(logits, logits, estimator="k4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose reverse or forward"):
        full_kl(logits, logits, direction="sideways")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"policy_logprobs \[2, 3\], reference_logprobs \[2\]"):
        kl_estimate(logits, logits[:, 0], estimator="k1")
