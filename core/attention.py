"""Attention over packed rows: every sequence of a row attends to itself alone.

A block-diagonal mask over the whole row would cost the square of the row's length. Here the sequences
are gathered into buckets of similar length and attended to causally, so the cost is that of the
sequences. Padding exists inside this one function only.

Dimension key: T token positions of the row, S sequences of a bucket, L positions, H heads, D head size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from core.packing import PackedAttention

PACKED_ATTENTION = "leash_packed"
"""Name under which transformers finds this attention."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: PackedAttention,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. [1, H, T, D] in, ([1, T, H, D], no weights) out."""
    query_THD, key_THD, value_THD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    grouped = query_THD.shape[1] != key_THD.shape[1]
    outputs = []
    for bucket in packing.buckets:
        out_SHLD = F.scaled_dot_product_attention(
            query=_gather(query_THD, bucket.gather_SL),
            key=_gather(key_THD, bucket.gather_SL),
            value=_gather(value_THD, bucket.gather_SL),
            is_causal=True,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=grouped,
        )
        outputs.append(out_SHLD.transpose(1, 2)[bucket.valid_SL])
    return torch.cat(outputs).index_select(0, packing.restore_T)[None], None


def _gather(tensor_THD: torch.Tensor, gather_SL: torch.Tensor) -> torch.Tensor:
    """[S, H, L, D]: the sequences of a bucket, padded by repeating their last token."""
    gathered = tensor_THD.index_select(0, gather_SL.flatten())
    return gathered.view(*gather_SL.shape, *tensor_THD.shape[1:]).transpose(1, 2)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
