"""Checks at the door of the learner's math: what has the wrong shape, and what to pass instead."""

import torch
from torch import Tensor


def require_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all named tensors have one shape: broadcasting here is nearly always a bug."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(
            f"shapes differ: {shapes}; give one value for each place of the first "
            "(one value a sequence becomes one a token by values[:, None].expand_as(mask), "
            "or values[sequence_ids] where sequences are packed)"
        )


def require_mask(mask: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless `mask` is boolean and all named tensors have its shape."""
    if mask.dtype != torch.bool:
        raise ValueError(
            f"mask has dtype {mask.dtype}; pass booleans, True = train on this token (mask.bool())"
        )
    require_same_shape(mask=mask, **tensors)
