"""A network that is a table and a batch of four rollouts, so that what an objective makes of them can be
written down by hand.

Every token of the batch has an id of its own, so that the gradient of a token's log-prob can be read off.

Dimension key: B rollouts, T completion tokens (padded), V vocabulary, N trained tokens of a packed row.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.decoding import UNCHANGED, Decoding
from core.packing import PackedRow, pack_row
from learner.algorithm_config import PolicyGradientAlgorithm
from learner.batch import Batch, MicroBatch, make_batch
from learner.config import KLConfig
from learner.kl_controllers import FixedKLController
from learner.policy_gradient import PolicyGradient
from tests.fakes import make_completion, make_group, make_prompt, make_rollout

TOKENS: list[list[int]] = [[0, 1], [2], [3], [4, 5, 6]]
SCORES = (4.0, 1.0, 3.0, 6.0)
KL_V = (1.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0)
"""Behavior - reference log-prob of each token."""
BEHAVIOR = -1.0
"""Behavior log-prob of every token."""
ROWS = ([0, 2], [1, 3])
"""Two packed rows, each with rollouts of both groups."""


class TableEngine:
    """Stands in for `ZeroEngine`: one number for every token id, log-prob or value, each a parameter.

    With `logits` the table is the distribution at every position.
    """

    device = torch.device("cpu")

    def __init__(self, *values: float) -> None:
        self.table_V = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        self.temperatures: list[float] = []
        self.lasts: list[bool] = []
        self.learning_rates: list[float] = []

    def __call__(self, row: PackedRow, decoding: Decoding = UNCHANGED, *, logits: bool = False) -> Tensor:
        self.temperatures.append(decoding.temperature)
        if logits:
            return (self.table_V / decoding.temperature).expand(len(row.target_ids_N), -1)
        return self.table_V[row.target_ids_N]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        torch.autograd.backward(loss)
        self.lasts.append(last)

    def step(self, learning_rate: float) -> float:
        self.learning_rates.append(learning_rate)
        return 2.5

    def gradient(self) -> list[float]:
        """[V]: what `backward` has summed up."""
        return [0.0] * len(self.table_V) if self.table_V.grad is None else self.table_V.grad.tolist()


def micro_batch_of(batch: Batch, members: Sequence[int]) -> MicroBatch:
    """A row of these rollouts; without members, one that only keeps ranks in step."""
    return MicroBatch(
        batch=batch,
        members=members,
        row=pack_row([batch.sequences[member] for member in members or range(1)]),
    )


def batch_by_hand() -> Batch:
    """Two groups of two rollouts: tokens 0, 1 | 2 and 3 | 4, 5, 6."""
    rollouts = [
        make_rollout(
            make_completion(*ids, prompt=make_prompt(900, 901), behavior=[BEHAVIOR] * len(ids)),
            score=score,
            reference=[BEHAVIOR - KL_V[token] for token in ids],
        )
        for ids, score in zip(TOKENS, SCORES, strict=True)
    ]
    return make_batch([make_group("0", rollouts[:2]), make_group("1", rollouts[2:])])


def table_policy(*ratios_V: float) -> TableEngine:
    """A policy that gives each token so many times the probability that the behavior policy gave it."""
    return TableEngine(*(BEHAVIOR + math.log(ratio) for ratio in ratios_V))


def objective(
    config: PolicyGradientAlgorithm,
    *,
    policy: Any = None,
    value_model: Any = None,
    kl_coef: float = 0.5,
    max_new_tokens: int = 3,
    **kl: Any,
) -> PolicyGradient:
    return PolicyGradient(
        config,
        KLConfig(kl_coef=77.0, **kl),  # only where a controller starts
        FixedKLController(kl_coef),
        policy=policy,
        value_model=value_model,
        learning_rate=0.1,
        decoding=Decoding(temperature=0.7),
        max_new_tokens=max_new_tokens,
    )


def by_token(batch: Batch, padded_BT: Tensor) -> list[float]:
    """[V]: a padded quantity in the order of the token ids."""
    return batch.select(padded_BT, range(len(batch))).tolist()


def each(*values_B: float) -> list[float]:
    """One value a rollout -> one a token."""
    return [value for value, ids in zip(values_B, TOKENS, strict=True) for _ in ids]
