"""The public math, called as anyone would: padded and packed, in both precisions, and wrongly.

Dimension key: B sequences, T token positions, V vocabulary, K completions of a prompt.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.advantages import gae, group_advantages, kl_penalized_rewards, leave_one_out_advantages
from learner.kl import full_kl, kl_estimate
from learner.losses import (
    bradley_terry_loss,
    dpo_loss,
    entropy,
    grpo_loss,
    importance_weights,
    k_wise_loss,
    ppo_policy_loss,
    rebel_loss,
    rpo_loss,
    value_loss,
)

NAN = float("nan")
MASK_BT = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
GROUP_IDS_B = torch.tensor([0, 0, 1, 1])
RANKS_BK = torch.tensor([[0, 1, 2], [2, 0, 1]])
PACKED_IDS = torch.tensor([7, 7, 3, 3, 3, 3, 5])
"""Which sequence each masked token of `MASK_BT` is of."""
PPO: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0, "aggregation": "token"}
GRPO: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3, "kl_coef": 0.1}

Call = Callable[[Callable[..., Tensor]], Any]
"""A call of a function, on tensors that it asks for by their shape."""

CALLS: dict[str, Call] = {
    "kl_estimate": lambda t: kl_estimate(t(3, 4), t(3, 4), estimator="k3"),
    "full_kl": lambda t: full_kl(t(3, 4, 5), t(3, 4, 5), direction="reverse"),
    "entropy": lambda t: entropy(t(3, 4, 5)),
    "gae": lambda t: torch.stack(gae(t(3, 4), t(3, 4), MASK_BT, gamma=0.9, lam=0.8)),
    "gae, packed": lambda t: torch.stack(
        gae(t(7), t(7), torch.ones(7).bool(), gamma=0.9, lam=0.8, sequence_ids=PACKED_IDS)
    ),
    "group_advantages": lambda t: group_advantages(t(4), GROUP_IDS_B, scale_by_std=True),
    "leave_one_out_advantages": lambda t: leave_one_out_advantages(t(4), GROUP_IDS_B),
    "kl_penalized_rewards": lambda t: kl_penalized_rewards(t(3), t(3, 4), MASK_BT, kl_coef=0.1),
    "ppo_policy_loss": lambda t: ppo_policy_loss(t(3, 4), t(3, 4), t(3, 4), MASK_BT, **PPO)[0],
    "grpo_loss": lambda t: grpo_loss(t(3, 4), t(3, 4), t(3, 4), t(3, 4), MASK_BT, **GRPO)[0],
    "value_loss": lambda t: value_loss(t(3, 4), t(3, 4), t(3, 4), MASK_BT, clip=0.2)[0],
    "importance_weights": lambda t: importance_weights(t(3, 4), t(3, 4), MASK_BT, level="sequence", cap=2.0),
    "bradley_terry_loss": lambda t: bradley_terry_loss(t(4), t(4), margin=t(4).abs()),
    "k_wise_loss": lambda t: k_wise_loss(t(2, 3), RANKS_BK),
    "dpo_loss": lambda t: dpo_loss(t(4), t(4), t(4), t(4), beta=0.1, variant="ipo"),
    "rpo_loss": lambda t: rpo_loss(t(4), t(4), t(4), t(4), t(4), beta=0.1, eta=1.0),
    "rebel_loss": lambda t: rebel_loss(t(4), t(4), t(4), t(4), t(4), eta=1.0),
}


def normal(seed: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", CALLS)
def test_the_answer_has_the_precision_of_what_was_given(name: str) -> None:
    single, double = (CALLS[name](normal(0, dtype)) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_not_a_number_goes_in_and_comes_out(name: str) -> None:
    """It is never taken for 0, for a tie or for a clipped value: who steps on the loss must see it."""

    def fill(*shape: int) -> Tensor:
        return torch.full(shape, NAN)

    assert CALLS[name](fill).isnan().any()


P_BT, S_B, LOGITS_BTV = torch.zeros(3, 4), torch.zeros(4), torch.zeros(3, 4, 5)
WRONG: list[tuple[str, Callable[[], Any]]] = [
    (
        r"logits have the shape \[\]",
        lambda: full_kl(torch.tensor(1.0), torch.tensor(1.0), direction="reverse"),
    ),
    (r"logits have the shape \[2, 0\]", lambda: entropy(torch.zeros(2, 0))),
    ("policy_logits are torch.int64", lambda: full_kl(P_BT.long(), P_BT.long(), direction="reverse")),
    ("pass sequence_ids", lambda: gae(S_B, S_B, S_B == 0, gamma=1, lam=1)),
    ("pass sequence_ids", lambda: gae(LOGITS_BTV, LOGITS_BTV, LOGITS_BTV == 0, gamma=1, lam=1)),
    (
        r"mask \[4\], sequence_ids \[3\]",
        lambda: gae(S_B, S_B, S_B == 0, gamma=1, lam=1, sequence_ids=S_B[:3]),
    ),
    (
        "row of its own",
        lambda: gae(P_BT[:1, :3], P_BT[:1, :3], torch.tensor([[True, False, True]]), gamma=1, lam=1),
    ),
    ("lam is nan", lambda: gae(P_BT, P_BT, MASK_BT, gamma=1, lam=NAN)),
    ("rewards are torch.int64", lambda: gae(P_BT.long(), P_BT, MASK_BT, gamma=1, lam=1)),
    ("scores are torch.int64", lambda: group_advantages(S_B.long(), GROUP_IDS_B, scale_by_std=False)),
    ("scores are torch.int64", lambda: leave_one_out_advantages(S_B.long(), GROUP_IDS_B)),
    (r"scores have the shape \[3, 4\]", lambda: leave_one_out_advantages(P_BT, P_BT)),
    (r"mask has the shape \[4\]", lambda: kl_penalized_rewards(S_B, S_B, S_B == 0, kl_coef=0.1)),
    ("kl_coef is -0.1", lambda: kl_penalized_rewards(S_B[:3], P_BT, MASK_BT, kl_coef=-0.1)),
    ("kl_coef is nan", lambda: grpo_loss(P_BT, P_BT, P_BT, P_BT, MASK_BT, **{**GRPO, "kl_coef": NAN})),
    ("clip range is", lambda: ppo_policy_loss(P_BT, P_BT, P_BT, MASK_BT, **{**PPO, "clip_high": NAN})),
    ("cap is 0.5", lambda: importance_weights(P_BT, P_BT, MASK_BT, level="token", cap=0.5)),
    ("cap is inf", lambda: importance_weights(P_BT, P_BT, MASK_BT, level="token", cap=math.inf)),
    ("margin is -1", lambda: bradley_terry_loss(S_B, S_B, margin=-1.0)),
    ("margin is nan", lambda: bradley_terry_loss(S_B, S_B, margin=NAN)),
    ("rated lower", lambda: bradley_terry_loss(S_B, S_B, margin=torch.tensor([0.0, -1.0, 0.0, 0.0]))),
    (r"scores have the shape \[4\]", lambda: k_wise_loss(S_B, torch.arange(4))),
    ("ranks are torch.float32", lambda: k_wise_loss(P_BT, torch.tensor([[0, 1, 2, NAN]] * 3))),
    ("ranks are torch.bool", lambda: k_wise_loss(P_BT, P_BT == 0)),
    ("chosen are torch.int64", lambda: bradley_terry_loss(S_B.long(), S_B)),
    (
        "weight of pair 2 is below 0",
        lambda: dpo_loss(S_B, S_B, S_B, S_B, beta=1.0, weights_B=torch.tensor([1.0, 0.0, -0.5, 1.0])),
    ),
    ("beta is inf", lambda: dpo_loss(S_B, S_B, S_B, S_B, beta=math.inf, variant="sigmoid")),
    ("eta is nan", lambda: rebel_loss(S_B, S_B, S_B, S_B, S_B, eta=NAN)),
]


@pytest.mark.parametrize(("message", "call"), WRONG)
def test_a_wrong_argument_is_refused_by_name(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
