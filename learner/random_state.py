"""Where the generators stand that have no seed of their own, so that a resumed rank draws what it would have drawn.

Dropout draws from torch's. NumPy's and Python's cost little to keep, whichever library may come to draw from them.
"""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Of this process, as plain values for JSON."""
    return {
        "torch": _hex(torch.get_rng_state()),
        "cuda": _hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        "numpy": [
            value.tolist() if isinstance(value, np.ndarray) else value for value in np.random.get_state()
        ],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on drawing where `random_state` was taken."""
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))
    np.random.set_state(tuple(state["numpy"]))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))


def seed_random_state(*seeds: int) -> None:
    """Start all generators anew; other seeds, other draws."""
    sequence = np.random.SeedSequence(seeds)
    for_torch, for_numpy, for_python = (int(word) for word in sequence.generate_state(3))
    torch.manual_seed(for_torch)  # CUDA's, too
    np.random.seed(for_numpy)
    random.seed(for_python)


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
