"""The exact KL against all completions of two tokens: the mean gradient of a step is that of the objective.

The policy is a table of logits by the token before, and with its adapters off another table: the reference.

Dimension key: B rollouts, N trained tokens of a packed row, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from core.decoding import UNCHANGED, Decoding
from core.models import logprobs_of
from core.packing import PackedRow
from learner.algorithm_config import (
    A2CConfig,
    ActorCriticConfig,
    PolicyGradientAlgorithm,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from learner.batch import Batch, make_batch
from learner.kl import Direction, full_kl
from tests.fakes import make_completion, make_group, make_prompt, make_rollout
from tests.learner.by_hand import TableEngine, micro_batch_of, objective

pytestmark = pytest.mark.usefixtures("process_group", "float64")

VOCABULARY = 3
KL_COEF = 0.5
TEMPERATURE = 0.7
"""That of `by_hand.objective`."""
COMPLETIONS = list(product(range(VOCABULARY), repeat=2))


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Adapters(nn.Module, BaseTunerLayer):
    """Nothing but the switch."""

    on = True

    def enable_adapters(self, enabled: bool) -> None:
        self.on = enabled


class BigramEngine(TableEngine):
    """Logits by the token before; the prompt is one token more than the vocabulary has."""

    def __init__(self, table: Tensor, reference: Tensor) -> None:
        super().__init__()
        self.table, self.reference = table.clone().requires_grad_(), reference
        self.module = Adapters()

    def __call__(self, row: PackedRow, decoding: Decoding = UNCHANGED, *, logits: bool = False) -> Tensor:
        table = self.table if self.module.on else self.reference
        logits_NV = table[row.token_ids_T[row.predicting_N]] / decoding.temperature
        return logits_NV if logits else logprobs_of(logits_NV, row.target_ids_N)


def tables() -> tuple[Tensor, Tensor]:
    """([V + 1, V], [V + 1, V]): policy and reference, far apart."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, VOCABULARY + 1, VOCABULARY, generator=generator))


def batch_of(policy: BigramEngine, *completions: tuple[int, ...], scores: tuple[float, ...] = ()) -> Batch:
    """One group, sampled by the policy itself."""
    rollouts = [
        make_rollout(make_completion(*completion, prompt=make_prompt(VOCABULARY)), score=score)
        for completion, score in zip(completions, scores or (0.0,) * len(completions), strict=True)
    ]
    torch.set_default_dtype(torch.float32)  # what a batch is read from
    batch = make_batch([make_group("0", rollouts)])
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        row = micro_batch_of(batch, range(len(batch))).row
        behavior_BT = policy(row, Decoding(temperature=TEMPERATURE)).view(batch.mask_BT.shape)
    return replace(batch, scores_B=batch.scores_B.double(), behavior_logprobs_BT=behavior_BT)


def probability(policy: BigramEngine, completion: tuple[int, ...]) -> Tensor:
    first, second = completion
    probs = (policy.table / TEMPERATURE).softmax(1)
    return probs[VOCABULARY, first] * probs[first, second]


def states_kl(policy: BigramEngine, direction: Direction) -> Tensor:
    """[V + 1]: the exact KL after each token, and after the prompt."""
    return full_kl(policy.table / TEMPERATURE, policy.reference / TEMPERATURE, direction=direction)


def mean_penalty(policy: BigramEngine, direction: Direction) -> Tensor:
    """The mean over completions of the sum of KLs at the states that they visit."""
    kl = states_kl(policy, direction)
    return sum((probability(policy, y) * (kl[VOCABULARY] + kl[y[0]]) for y in COMPLETIONS), torch.zeros(()))


def accumulate(config: PolicyGradientAlgorithm, policy: BigramEngine, batch: Batch, **kl: Any) -> None:
    value_model: Any = TableEngine(*[0.0] * VOCABULARY) if isinstance(config, ActorCriticConfig) else None
    method = objective(
        config,
        policy=policy,
        value_model=value_model,
        kl_coef=KL_COEF,
        max_new_tokens=2,
        estimator="exact",
        **kl,
    )
    row = micro_batch_of(batch, range(len(batch)))
    targets = method.targets(batch, [row], step=0)
    method.accumulate(row, targets, method.counts(batch, range(len(batch))), last=True)


def gradient_of(loss: Tensor, policy: BigramEngine) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, policy.table)
    return gradient


def test_the_reverse_penalty_is_the_kl_of_whole_completions() -> None:
    policy = BigramEngine(*tables())
    reference = BigramEngine(policy.reference, policy.reference)
    kl = torch.zeros(())
    for y in COMPLETIONS:
        p, q = probability(policy, y), probability(reference, y)
        kl = kl + p * (p / q).log()
    torch.testing.assert_close(mean_penalty(policy, "reverse"), kl)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_in_the_reward_the_mean_gradient_is_that_of_the_penalty(
    direction: Direction, aggregation: Any
) -> None:
    """Each completion weighed by its probability. A mean over its two tokens is half the sum."""
    policy = BigramEngine(*tables())
    config = A2CConfig(kind="a2c", aggregation=aggregation)
    mean = torch.zeros(VOCABULARY + 1, VOCABULARY)
    for y in COMPLETIONS:
        policy.table.grad = None
        accumulate(config, policy, batch_of(policy, y), direction=direction)
        assert policy.table.grad is not None
        mean += probability(policy, y).detach() * policy.table.grad
    expected = KL_COEF / 2 * gradient_of(mean_penalty(policy, direction), policy)
    torch.testing.assert_close(mean, expected)


def test_and_with_another_completion_as_the_baseline() -> None:
    """Each pair weighed by its probability."""
    policy = BigramEngine(*tables())
    config = RLOOConfig(kind="rloo", scale_advantages=False)
    mean = torch.zeros(VOCABULARY + 1, VOCABULARY)
    for pair in product(COMPLETIONS, repeat=2):
        policy.table.grad = None
        accumulate(config, policy, batch_of(policy, *pair))
        assert policy.table.grad is not None
        weight = probability(policy, pair[0]) * probability(policy, pair[1])
        mean += weight.detach() * policy.table.grad
    expected = KL_COEF / 2 * gradient_of(mean_penalty(policy, "reverse"), policy)
    torch.testing.assert_close(mean, expected)


def test_importance_weights_of_sequences_weigh_both_parts() -> None:
    """Completions of another policy, each weighed by the probability that it gave them."""
    policy = BigramEngine(*tables())
    behavior = BigramEngine(policy.reference, policy.reference)
    config = PPOConfig(
        kind="ppo",
        gae_lambda=1.0,
        whiten_advantages=False,
        importance_sampling="sequence",
        importance_cap=1e9,
    )
    mean = torch.zeros(VOCABULARY + 1, VOCABULARY)
    for y in COMPLETIONS:
        policy.table.grad = None
        accumulate(config, policy, batch_of(behavior, y))
        assert policy.table.grad is not None
        mean += probability(behavior, y).detach() * policy.table.grad
    expected = KL_COEF / 2 * gradient_of(mean_penalty(policy, "reverse"), policy)
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_in_the_loss_it_is_the_gradient_at_the_visited_states_alone(direction: Direction) -> None:
    policy = BigramEngine(*tables())
    y = (2, 0)
    accumulate(A2CConfig(kind="a2c"), policy, batch_of(policy, y), direction=direction, placement="loss")
    kl = states_kl(policy, direction)
    expected = KL_COEF / 2 * gradient_of(kl[VOCABULARY] + kl[y[0]], policy)
    torch.testing.assert_close(policy.table.grad, expected)


@pytest.mark.parametrize(
    ("scaled", "plain"),
    [
        (A2CConfig(kind="a2c", whiten_advantages=True), A2CConfig(kind="a2c")),
        (RLOOConfig(kind="rloo"), RLOOConfig(kind="rloo", scale_advantages=False)),
    ],
)
def test_scaled_advantages_scale_the_term_in_the_loss_as_well(
    scaled: PolicyGradientAlgorithm, plain: PolicyGradientAlgorithm
) -> None:
    """Both parts of the gradient are divided by one number, the deviation of the plain advantages; a mean that
    is shifted adds as many times the gradient of the mean log-prob."""
    policy = BigramEngine(*tables())
    batch = batch_of(policy, (0, 1), (2, 0), (1, 1), scores=(1.0, -2.0, 0.5))
    gradients: list[Tensor] = []
    advantages: list[Tensor] = []
    for config in (scaled, plain):
        policy.table.grad = None
        accumulate(config, policy, batch)
        assert policy.table.grad is not None
        gradients.append(policy.table.grad)
        value_model: Any = TableEngine(*[0.0] * VOCABULARY) if isinstance(config, ActorCriticConfig) else None
        method = objective(config, policy=policy, value_model=value_model, kl_coef=KL_COEF, estimator="exact")
        targets = method.targets(batch, [micro_batch_of(batch, range(3))], step=0)
        advantages.append(targets["advantages"])
    std = advantages[1].std(correction=0)
    mean = advantages[1].mean() if isinstance(scaled, A2CConfig) else 0.0
    row = micro_batch_of(batch, range(3)).row
    shift = mean * gradient_of(policy(row, Decoding(temperature=TEMPERATURE)).mean(), policy)
    torch.testing.assert_close(gradients[0] * std, gradients[1] + shift, rtol=1e-5, atol=1e-6)


def test_reinforce_scales_the_term_in_the_loss() -> None:
    """Rewards to go of one completion: -c (KL_0 + KL_1), -c KL_1, whitened 1 and -1 times a sign; half their
    distance, c KL_0 / 2, is the deviation that the term in the loss is divided by."""
    policy = BigramEngine(*tables())
    y = (2, 0)
    accumulate(ReinforceConfig(kind="reinforce++"), policy, batch_of(policy, y))
    kl = states_kl(policy, "reverse")
    logprobs = (policy.table / TEMPERATURE).log_softmax(1)
    surrogate = (logprobs[VOCABULARY, y[0]] - logprobs[y[0], y[1]]) / 2
    direct = KL_COEF * (kl[VOCABULARY] + kl[y[0]]) / 2 / (KL_COEF * kl[VOCABULARY].detach() / 2)
    torch.testing.assert_close(
        policy.table.grad, gradient_of(surrogate + direct, policy), rtol=1e-4, atol=1e-5
    )
