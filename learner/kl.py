"""Log-probs or logits of policy and reference -> their KL divergence in nats.

    reverse  KL(policy || reference): the leash of RLHF (RLHF book, Regularization, eq. 2); seeks modes
    forward  KL(reference || policy): what supervised fine-tuning minimizes; covers modes

Dimension key: B sequences, T token positions, V vocabulary. A tensor without a suffix is one value a
token, packed [T] or padded [B, T]; logits have V behind that.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor

from learner.shapes import require_floats, require_same_shape

Estimator = Literal["k1", "k2", "k3", "abs"]
Direction = Literal["reverse", "forward"]

CHUNK_ELEMENTS = 1 << 22
"""Logits looked at in one go: 16 MiB in float32, little beside a micro-batch and plenty for one kernel."""


def kl_estimate(policy_logprobs: Tensor, reference_logprobs: Tensor, *, estimator: Estimator) -> Tensor:
    """One estimate of KL(policy || reference) a token, from the log-probs of the sampled tokens.

    With x = log policy - log reference (J. Schulman, "Approximating KL divergence", 2020,
    joschu.net/blog/kl-approx.html), for tokens sampled from the policy itself:

    |     | formula        | mean of its value   | mean of its gradient               | sign |
    | --- | -------------- | ------------------- | ---------------------------------- | ---- |
    | k1  | x              | reverse KL          | 0: useless as a loss               | any  |
    | k2  | x^2 / 2        | biased, little near | of reverse KL                      | >= 0 |
    | k3  | exp(-x) - 1 + x| reverse KL          | of FORWARD KL                      | >= 0 |
    | abs | |x|            | >= reverse KL       | of twice the total variation       | >= 0 |

    So: k1 as a penalty inside the reward (there the score function supplies the gradient, and k1 is
    the one that makes it reverse KL's), k2 as a loss, k3 to watch; k3 as a loss is what GRPO does
    (arXiv:2402.03300, eq. 4). Value and gradient: arXiv:2510.01555. Tokens from an older policy bias
    all of them. k3 grows as exp(-x): one token that the reference likes far better can dominate.
    """
    require_same_shape(policy_logprobs=policy_logprobs, reference_logprobs=reference_logprobs)
    log_ratio = policy_logprobs - reference_logprobs
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            return torch.expm1(-log_ratio) + log_ratio
        case "abs":
            return log_ratio.abs()
        case _:
            raise ValueError(f"no KL estimator {estimator!r}; choose one of k1, k2, k3, abs")


def full_kl(policy_logits: Tensor, reference_logits: Tensor, *, direction: Direction) -> Tensor:
    """Exact KL at every position, [..., V] -> [...], by its definition (RLHF book, Regularization, eq. 3).

    A function of the tokens before, not of the one sampled: as a reward alone it holds nothing back (see
    `learner/kl_penalty.py`). Gradients flow to whichever logits ask for them; see `divergence` for memory and
    precision.
    """
    require_same_shape(policy_logits=policy_logits, reference_logits=reference_logits)
    require_floats(policy_logits=policy_logits, reference_logits=reference_logits)
    match direction:
        case "reverse":
            return divergence(policy_logits, reference_logits)
        case "forward":
            return divergence(reference_logits, policy_logits)
        case _:
            raise ValueError(f"no KL direction {direction!r}; choose reverse or forward")


def divergence(first_logits: Tensor, second_logits: Tensor | None) -> Tensor:
    """KL(first || second) at every position; without a second, sum p log p, which is minus the entropy.

    Works through a few positions at a time, forward and backward, so that beside the given logits
    and their gradient nothing of size [B, T, V] is held. Half-precision logits are computed, and the
    result is, in float32. A token of probability 0 (logit -inf) adds nothing to the sum if it is so in
    the first, and makes it infinite if it is so in the second alone.
    """
    if first_logits.dim() == 0 or first_logits.shape[-1] == 0:
        raise ValueError(
            f"logits have the shape {list(first_logits.shape)}; the last dimension must be the vocabulary"
        )
    return cast(Tensor, _Divergence.apply(first_logits, second_logits))  # type: ignore[no-untyped-call]


class _Divergence(torch.autograd.Function):
    """KL(first || second) from logits. With p and q the two distributions and x = log p - log q, its
    derivative is p (x - KL) by the first logits, and q - p by the second."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor | None) -> Tensor:
        kl = first.new_empty(first.shape[:-1], dtype=torch.promote_types(first.dtype, torch.float32))
        for block in _blocks(first.shape[:-1], _chunk_positions(first)):
            p, log_ratio = _probs_and_log_ratio(first, second, block, kl.dtype)
            kl[block] = p.mul_(log_ratio).sum(-1)
        ctx.save_for_backward(first, second, kl)
        return kl

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        first, second, kl = ctx.saved_tensors
        grad_first, grad_second = (
            torch.empty_like(logits) if needed else None
            for logits, needed in zip((first, second), ctx.needs_input_grad, strict=True)
        )
        for block in _blocks(first.shape[:-1], _chunk_positions(first)):
            p, log_ratio = _probs_and_log_ratio(first, second, block, kl.dtype)
            grad_kl = grad_outputs[0][block].unsqueeze(-1)
            if grad_second is not None:
                grad_second[block] = (second[block].softmax(-1, dtype=kl.dtype) - p) * grad_kl
            if grad_first is not None:
                grad_first[block] = log_ratio.sub_(kl[block].unsqueeze(-1)).mul_(p).mul_(grad_kl)
        return grad_first, grad_second


def _probs_and_log_ratio(
    first: Tensor, second: Tensor | None, block: tuple[slice, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """p and log p - log q of one block of positions, the latter 0 where p is 0 (0 log 0 = 0)."""
    log_ratio = first[block].log_softmax(-1, dtype=dtype)
    p = log_ratio.exp()
    if second is not None:
        log_ratio.sub_(second[block].log_softmax(-1, dtype=dtype))
    return p, log_ratio.masked_fill_(p == 0, 0)


def _chunk_positions(logits: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // logits.shape[-1])


def _blocks(leading: torch.Size, num_positions: int) -> Iterator[tuple[slice, ...]]:
    """Indices that cut the positions into blocks of at most `num_positions`. They index views, so that
    logits that are themselves a slice of something are not copied, as flattening them would."""
    if not leading:
        yield ()
        return
    inner = math.prod(leading[1:])
    step = max(1, num_positions // max(1, inner))
    for start in range(0, leading[0], step):
        for rest in [()] if inner <= num_positions else _blocks(leading[1:], num_positions):
            yield (slice(start, start + step), *rest)
