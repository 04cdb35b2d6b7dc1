"""How logits become the distribution that is sampled from: temperature, min-p, top-k, nucleus, in vLLM's order.

The sampler applies this to choose a token and reports its log-prob there; the learner applies the same to its
own logits, so that the two can be compared. On-policy both keep the same tokens, but for ties and rounding at the
very edge; a token that was sampled always counts as kept, so that a policy that has moved since never finds it
impossible.

Dimension key: N token positions, V vocabulary.
"""

import torch
from torch import Tensor

from core.decoding import Decoding

CHUNK_POSITIONS = 64
"""Positions whose vocabulary is sorted in one go: sorting needs indices twice the size of the logits."""


def decoded_logits(logits_NV: Tensor, sampled_N: Tensor, decoding: Decoding) -> Tensor:
    """[N, V]: logits after temperature, -inf where a token is cut off. The gradient flows through the rest."""
    if decoding.temperature != 1.0:
        logits_NV = logits_NV / decoding.temperature
    if not decoding.truncates:
        return logits_NV
    with torch.no_grad():
        chunks = logits_NV.detach().split(CHUNK_POSITIONS)
        kept_NV = torch.cat([_kept(chunk, decoding) for chunk in chunks])
        kept_NV.scatter_(1, sampled_N[:, None], True)
    return logits_NV.masked_fill(~kept_NV, -torch.inf)


def _kept(logits_NV: Tensor, decoding: Decoding) -> Tensor:
    """[N, V] bool: what may be sampled."""
    if decoding.min_p > 0:
        probs_NV = logits_NV.softmax(1)
        logits_NV = logits_NV.masked_fill(
            probs_NV < decoding.min_p * probs_NV.amax(1, keepdim=True), -torch.inf
        )
    if decoding.top_k is not None and decoding.top_k < logits_NV.shape[1]:
        smallest_N1 = logits_NV.topk(decoding.top_k).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < smallest_N1, -torch.inf)
    if decoding.top_p < 1:
        ascending_NV, order_NV = logits_NV.sort(1)
        cut_NV = ascending_NV.softmax(1).cumsum(1) <= 1 - decoding.top_p
        cut_NV[:, -1] = False  # the likeliest stays
        logits_NV = logits_NV.masked_fill(cut_NV.scatter(1, order_NV, cut_NV), -torch.inf)
    return logits_NV > -torch.inf
