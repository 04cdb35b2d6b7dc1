"""Checks at the door of the learner's math: what has the wrong shape, and what to pass instead."""

import math

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


def require_rank(rank: int, **tensors: Tensor) -> None:
    """Raise ValueError unless all named tensors have so many dimensions."""
    for name, tensor in tensors.items():
        if tensor.dim() != rank:
            dimensions = "1 dimension, one value a sequence" if rank == 1 else f"{rank} dimensions"
            raise ValueError(f"{name} have the shape {list(tensor.shape)}; give {dimensions}")


def require_floats(**tensors: Tensor) -> None:
    """Raise ValueError unless all named tensors hold floating-point numbers: fractions would be cut off."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} are {tensor.dtype}; pass floating-point numbers ({name}.float())")


def require_coefficient(name: str, value: float) -> None:
    """Raise ValueError unless the number is finite and at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(
            f"{name} is {value}; set 0 for none of it, or a finite positive number (such as 0.05)"
        )


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless the number is finite and above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; set a finite number above 0 (such as 0.1)")
