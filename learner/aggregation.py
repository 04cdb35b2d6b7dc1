"""One value a token -> the scalar of a micro-batch: what each token weighs in the global mean.

What the three aggregations are, and what a normalizer counts, is told in `learner/losses.py`.

Dimension key: a tensor without a suffix is one value a token: padded [B, T], where a row is a sequence, or
packed [T], where `sequence_ids` tells.
"""

import torch
from torch import Tensor

from learner.algorithm_config import Aggregation as Aggregation
from learner.shapes import require_mask


def aggregate(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum; what stands at weight 0 is not looked at, even if NaN."""
    return (torch.where(weights > 0, values.to(weights.dtype), 0.0) * weights).sum()


def token_weights(
    mask: Tensor,
    dtype: torch.dtype,
    aggregation: Aggregation,
    normalizer: float | None,
    sequence_ids: Tensor | None,
) -> Tensor:
    """What each token counts for in the global mean; 0 outside the mask. Same shape as the mask."""
    if normalizer is not None and not normalizer > 0:
        raise ValueError(
            f"normalizer is {normalizer}; give the global count of what {aggregation!r} averages over"
        )
    weights = mask.to(torch.promote_types(dtype, torch.float32))
    match aggregation:
        case "token":
            count = weights.sum()
        case "sequence":
            index, num_sequences = sequence_index(mask, sequence_ids)
            lengths = sequence_sums(weights, index, num_sequences)
            weights = weights / lengths.clamp(min=1)[index]
            count = (lengths > 0).sum()
        case "constant":
            if normalizer is None:
                raise ValueError(
                    "aggregation='constant' needs a normalizer: sequences * longest completion allowed"
                )
        case _:
            raise ValueError(f"no aggregation {aggregation!r}; choose one of token, sequence, constant")
    if normalizer is None:
        normalizer = float(count)
        if normalizer == 0:
            raise ValueError("the mask selects no token; drop the batch, or give the global normalizer")
    return weights / normalizer


def sequence_index(mask: Tensor, sequence_ids: Tensor | None) -> tuple[Tensor, int]:
    """Which sequence each token belongs to, counted from 0, and how many there are."""
    if sequence_ids is not None:
        require_mask(mask, sequence_ids=sequence_ids)
        ids, index = torch.unique(sequence_ids, return_inverse=True)
        return index, len(ids)
    if mask.dim() != 2:
        raise ValueError(
            f"a mask of shape {list(mask.shape)} does not tell sequences apart; pass sequence_ids"
        )
    return torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask), len(mask)


def sequence_sums(values: Tensor, index: Tensor, num_sequences: int) -> Tensor:
    """[sequences]: the sum over each sequence, by the index that `sequence_index` gives."""
    return values.new_zeros(num_sequences).index_add_(0, index.flatten(), values.flatten())
