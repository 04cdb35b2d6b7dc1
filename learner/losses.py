"""Log-probs and values of one micro-batch -> the scalars to minimize, and metrics that add up.

Every loss takes its micro-batch's share of a global mean. Give `normalizer`, counted over ALL micro-batches
and ranks of the optimizer step, and the shares SUM to the loss of the whole batch (where the engine averages
gradients over ranks, multiply by the number of ranks). Without it, this call is the whole batch. `math.inf`
makes a micro-batch count nothing: loss and gradient 0. It counts, by `aggregation`,

    token     masked tokens: every token weighs the same (DAPO, arXiv:2503.14476, sec. 3.3)
    sequence  sequences with a masked token: the mean of per-sequence means (GRPO, arXiv:2402.03300, eq. 3);
              a sequence must lie whole in one micro-batch
    constant  sequences * longest completion allowed: a fixed divisor, so that length does not change a
              token's weight (Dr. GRPO, arXiv:2503.20783, sec. 3.2); must be given

Metrics are detached scalars that `combine_metrics` puts together over micro-batches and ranks: names that
end in `_max` by the maximum, `explained_variance` from its moments, all others by the sum, because they carry
the weights of the loss. Those weights sum to `loss_weight`: 1 over a whole batch, less under `constant`;
divide a clip fraction or a KL by it to have it per token there.

Dimension key: B sequences, T token positions, V vocabulary. A tensor without a suffix is one value a token:
padded [B, T], where a row is a sequence, or packed, where `sequence_ids` (same shape, any integers) tells.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from learner.aggregation import Aggregation as Aggregation
from learner.aggregation import aggregate, sequence_index, sequence_sums, token_weights
from learner.kl import Estimator, divergence, kl_estimate
from learner.preference_losses import bradley_terry_loss as bradley_terry_loss
from learner.preference_losses import dpo_loss as dpo_loss
from learner.preference_losses import k_wise_loss as k_wise_loss
from learner.preference_losses import rebel_loss as rebel_loss
from learner.preference_losses import rpo_loss as rpo_loss
from learner.shapes import require_coefficient, require_mask

Metrics = dict[str, Tensor]

MAX_LOG_RATIO = 20.0
"""Where the log of a probability ratio is cut off: e^20 is far outside any trust region, and e^89 would
overflow float32 and turn a clipped token's zero gradient into NaN."""


def ppo_policy_loss(
    policy_logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    aggregation: Aggregation,
    normalizer: float | None = None,
    sequence_ids: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), the clipped surrogate (arXiv:1707.06347, eq. 7).

    r = policy / behavior probability of the token; the gradient flows through `policy_logprobs` only.
    Two bounds as in DAPO (arXiv:2503.14476, sec. 3.1). `dual_clip` c > 1 also bounds the loss of a token
    with A < 0 at -c A, however likely it has become (arXiv:1912.09729); stale rollouts need it.
    To correct for a sampler that differs from the policy the ratio is taken to, multiply the advantages
    by `importance_weights`. The clip metrics count tokens whose gradient a bound has removed:
    `clip_fraction_low` (A < 0, r below), `_high` (A > 0, r above), `_dual`. `approx_kl` is
    KL(behavior || policy) in nats by k3.
    """
    require_mask(
        mask, policy_logprobs=policy_logprobs, behavior_logprobs=behavior_logprobs, advantages=advantages
    )
    if not (0 < clip_low <= 1 and 0 < clip_high < math.inf):
        raise ValueError(
            f"clip range is ({clip_low}, {clip_high}); set low in (0, 1], high above 0 (such as 0.2)"
        )
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; set it above 1 (such as 3), or None to leave it out")
    weights = token_weights(mask, policy_logprobs.dtype, aggregation, normalizer, sequence_ids)
    advantages = advantages.detach()
    log_ratio = _log_ratio(policy_logprobs, behavior_logprobs.detach(), mask)
    ratio = log_ratio.exp()
    losses = torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    dual_clipped = torch.zeros_like(mask)
    if dual_clip is not None:
        dual_clipped = (advantages < 0) & (ratio > dual_clip)
        losses = torch.where(dual_clipped, -dual_clip * advantages, losses)
    loss = aggregate(losses, weights)
    log_ratio, ratio = log_ratio.detach(), ratio.detach()
    return loss, {
        "policy_loss": loss.detach(),
        "clip_fraction_low": aggregate((advantages < 0) & (ratio < 1 - clip_low), weights),
        "clip_fraction_high": aggregate((advantages > 0) & (ratio > 1 + clip_high), weights),
        "clip_fraction_dual": aggregate(dual_clipped, weights),
        "approx_kl": aggregate(kl_estimate(-log_ratio, torch.zeros_like(log_ratio), estimator="k3"), weights),
        "ratio_max": torch.where(mask, ratio, 0.0).amax() if mask.numel() else ratio.sum(),
        "loss_weight": weights.sum(),
    }


def grpo_loss(
    policy_logprobs: Tensor,
    behavior_logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    estimator: Estimator = "k3",
    dual_clip: float | None = None,
    aggregation: Aggregation = "sequence",
    normalizer: float | None = None,
    sequence_ids: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The PPO surrogate plus kl_coef * KL to the reference inside the loss (arXiv:2402.03300, eq. 3 and 4).

    The defaults are the paper's; `aggregation="constant"` with unscaled advantages is Dr. GRPO, "token"
    with two bounds DAPO. `kl_loss` among the metrics is the KL before `kl_coef`. What k3's gradient is,
    and that k2's is reverse KL's, see `learner.kl.kl_estimate`. Left out: reweighting the KL term for
    stale rollouts.
    """
    require_mask(mask, reference_logprobs=reference_logprobs)
    require_coefficient("kl_coef", kl_coef)
    loss, metrics = ppo_policy_loss(
        policy_logprobs,
        behavior_logprobs,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        aggregation=aggregation,
        normalizer=normalizer,
        sequence_ids=sequence_ids,
    )
    weights = token_weights(mask, policy_logprobs.dtype, aggregation, normalizer, sequence_ids)
    policy_logprobs, reference_logprobs = (
        torch.where(mask, logprobs, 0.0) for logprobs in (policy_logprobs, reference_logprobs.detach())
    )
    kl = aggregate(kl_estimate(policy_logprobs, reference_logprobs, estimator=estimator), weights)
    return loss + kl_coef * kl, {**metrics, "kl_loss": kl.detach()}


def sequence_ratio_logprobs(
    policy_logprobs: Tensor, behavior_logprobs: Tensor, mask: Tensor, sequence_ids: Tensor | None = None
) -> Tensor:
    """Log-probs that give `ppo_policy_loss` one ratio a sequence: the geometric mean of its tokens' ratios.

    s = exp(mean over the tokens of log policy - log behavior), GSPO (arXiv:2507.18071, eq. 5 and 7, with
    aggregation "sequence"). Behavior log-probs plus log s; the gradient flows through `policy_logprobs`.
    """
    require_mask(mask, policy_logprobs=policy_logprobs, behavior_logprobs=behavior_logprobs)
    log_ratio = torch.where(mask, policy_logprobs - behavior_logprobs.detach(), 0.0)
    index, num_sequences = sequence_index(mask, sequence_ids)
    lengths = sequence_sums(mask.to(log_ratio.dtype), index, num_sequences).clamp(min=1)
    means = sequence_sums(log_ratio, index, num_sequences) / lengths
    return torch.where(mask, behavior_logprobs.detach() + means[index], 0.0)


def importance_weights(
    policy_logprobs: Tensor,
    behavior_logprobs: Tensor,
    mask: Tensor,
    *,
    level: Literal["token", "sequence"],
    cap: float,
    sequence_ids: Tensor | None = None,
) -> Tensor:
    """min(policy / behavior probability, cap) for every masked token, detached; 0 outside the mask.

    Truncated importance sampling (Ionides 2008; for rollouts of another engine Yao et al. 2025,
    openreview xsonlP8DRV). "token" has little variance and ignores what came before the token;
    "sequence" gives each token the whole sequence's ratio, which is unbiased where the cap does not bite.
    """
    require_mask(mask, policy_logprobs=policy_logprobs, behavior_logprobs=behavior_logprobs)
    if not 1 <= cap < math.inf:
        raise ValueError(f"cap is {cap}; set the largest weight, a finite number from 1 on (such as 2)")
    log_ratio = torch.where(mask, policy_logprobs.detach() - behavior_logprobs.detach(), 0.0)
    match level:
        case "token":
            pass
        case "sequence":
            index, num_sequences = sequence_index(mask, sequence_ids)
            log_ratio = sequence_sums(log_ratio, index, num_sequences)[index]
        case _:
            raise ValueError(f"no level {level!r} of importance weights; choose token or sequence")
    return torch.where(mask, log_ratio.clamp(max=math.log(cap)).exp(), 0.0)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float | None,
    normalizer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Half the mean squared error of `values` to `returns` over masked tokens (arXiv:1707.06347, eq. 9).

    With `clip`, half the mean of the LARGER of the errors of V and of old V + clip(V - old V, -clip, clip)
    (arXiv:2005.12729, sec. 3). `explained_variance` is 1 - Var(returns - values) / Var(returns): 1 is
    perfect, 0 no better than a constant, NaN where the returns do not vary.
    """
    require_mask(mask, values=values, old_values=old_values, returns=returns)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}; set it above 0 (such as 0.2), or None to leave it out")
    weights = token_weights(mask, values.dtype, "token", normalizer, None)
    old_values, returns = (
        torch.where(mask, old_values.detach(), 0.0),
        torch.where(mask, returns.detach(), 0.0),
    )
    values = torch.where(mask, values, 0.0)
    squares, clipped_squares = (values - returns).square(), torch.zeros_like(returns)
    if clip is not None:
        clipped_squares = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    loss = aggregate(torch.maximum(squares, clipped_squares), weights) / 2
    returns, errors, weights = returns.double(), (returns - values.detach()).double(), weights.double()
    metrics = {
        "value_loss": loss.detach(),
        "value_clip_fraction": aggregate(clipped_squares.detach() > squares.detach(), weights),
        "value_weight": weights.sum(),
        "return_mean": aggregate(returns, weights),
        "return_square_mean": aggregate(returns.square(), weights),
        "value_error_mean": aggregate(errors, weights),
        "value_error_square_mean": aggregate(errors.square(), weights),
    }
    return loss, {**metrics, "explained_variance": _explained_variance(metrics)}


def mean_over_tokens(
    values: Tensor,
    mask: Tensor,
    *,
    aggregation: Aggregation,
    normalizer: float | None = None,
    sequence_ids: Tensor | None = None,
) -> Tensor:
    """This micro-batch's share of a quantity's mean, weighed as `ppo_policy_loss` weighs tokens."""
    require_mask(mask, values=values)
    return aggregate(values, token_weights(mask, values.dtype, aggregation, normalizer, sequence_ids))


def logprob_gap(policy_N: Tensor, behavior_N: Tensor, mask_N: Tensor, num_tokens: float) -> Metrics:
    """How far the engine's log-probs are from the learner's, in nats. Right at a step's first update only."""
    gap_N = (policy_N - behavior_N).abs() * mask_N
    return {"logprob_gap_max": gap_N.max(), "logprob_gap_mean": gap_N.sum() / num_tokens}


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats at every position, [..., V] -> [...]: the bonus S of arXiv:1707.06347, eq. 9.

    In float32 at least, a few positions at a time (see `learner.kl.divergence`).
    """
    return -divergence(logits, None)


def combine_metrics(parts: Sequence[Metrics]) -> Metrics:
    """The metrics of the whole batch from those of its micro-batches, of all ranks."""
    if not parts:
        raise ValueError("no metrics to combine; give those of at least one micro-batch")
    combined = {}
    for name in parts[0]:
        stacked = torch.stack([part[name] for part in parts])
        combined[name] = stacked.amax(0) if name.endswith("_max") else stacked.sum(0)
    if "explained_variance" in combined:
        combined["explained_variance"] = _explained_variance(combined)
    return combined


def _explained_variance(moments: Metrics) -> Tensor:
    def variance(name: str) -> Tensor:
        mean = moments[f"{name}_mean"] / moments["value_weight"]
        return moments[f"{name}_square_mean"] / moments["value_weight"] - mean.square()

    spread = variance("return")
    varies = spread > 1e-12 * moments["return_square_mean"]  # above what rounding leaves of a constant
    return torch.where(varies, 1 - variance("value_error") / spread, math.nan)


def _log_ratio(policy_logprobs: Tensor, behavior_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Before `exp`, so that whatever stands outside the mask can give no inf and no NaN gradient."""
    return torch.where(mask, policy_logprobs - behavior_logprobs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
