"""Attention over packed rows: every sequence of a row attends to itself alone.

A block-diagonal mask over the whole row would cost the square of the row's length. Here the sequences
are gathered into buckets of similar length and attended to causally, so the cost is that of the
sequences. Padding exists inside this one function only.

Dimension key: T token positions of the row, S sequences of a bucket, L positions, P places (S * L) of all
buckets, end to end, H heads, D head size.
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
    parts = [_into_buckets(tensor[0].transpose(0, 1), packing) for tensor in (query, key, value)]
    outputs = []
    for query_SHLD, key_SHLD, value_SHLD in zip(*parts, strict=True):
        out_SHLD = F.scaled_dot_product_attention(
            query_SHLD,
            key_SHLD,
            value_SHLD,
            is_causal=True,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query_SHLD.shape[1] != key_SHLD.shape[1],
        )
        outputs.append(out_SHLD.transpose(1, 2).flatten(0, 1))
    out_PHD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _Collect.apply(out_PHD, packing)[None], None  # type: ignore[no-untyped-call]


def _into_buckets(tensor_THD: torch.Tensor, packing: PackedAttention) -> list[torch.Tensor]:
    """[S, H, L, D] for each bucket."""
    spread_PHD = _Spread.apply(tensor_THD, packing)  # type: ignore[no-untyped-call]
    sizes = [sequences * length for sequences, length in packing.buckets]
    parts = [spread_PHD] if len(sizes) == 1 else spread_PHD.split(sizes)
    return [
        part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, packing.buckets, strict=True)
    ]


class _Spread(torch.autograd.Function):
    """[T, ...] -> [P, ...]: every token to its place. Backward takes what lies there, without adding up.

    No sum over places, as index_select's own backward would take, and exact all the same: the gradient at
    padding is zero, because no token attends to the padding behind it, and `_Collect` drops what padding gives.
    """

    @staticmethod
    def forward(context: Any, tensor_T: torch.Tensor, packing: PackedAttention) -> torch.Tensor:
        context.packing = packing
        return tensor_T.index_select(0, packing.gather_P)

    @staticmethod
    def backward(context: Any, gradient_P: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient_P.index_select(0, context.packing.place_T), None


class _Collect(torch.autograd.Function):
    """[P, ...] -> [T, ...]: every token from its place; padding is dropped, and its gradient is zero."""

    @staticmethod
    def forward(context: Any, tensor_P: torch.Tensor, packing: PackedAttention) -> torch.Tensor:
        context.packing = packing
        return tensor_P.index_select(0, packing.place_T)

    @staticmethod
    def backward(context: Any, gradient_T: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing: PackedAttention = context.packing
        gradient_P = gradient_T.new_zeros(len(packing.gather_P), *gradient_T.shape[1:])
        return gradient_P.index_copy_(0, packing.place_T, gradient_T), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
